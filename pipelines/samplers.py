"""Samplers: the table from the names people know to diffusers' scheduler classes, and how one is built.

A sampler turns the network's prediction into the next latents; a schedule says at which noise levels (sigmas) it
stops on the way. They are two axes: any schedule in a row's set may be combined with that row's sampler.
This module names classes as text, so that checking a request imports neither torch nor diffusers.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from typing import Any

from pipelines.errors import InvalidRequest


class Prediction(StrEnum):
    """What a family's network predicts: the noise of a diffusion process or the velocity of a flow."""

    DIFFUSION = "diffusion"
    FLOW = "flow"


MAX_STEPS = 150
"""The most steps any sampler takes; some take fewer."""

AUTOMATIC = "automatic"
"""The schedule that the checkpoint itself was published with."""

_NO_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}

# The options by which diffusers' classes select each schedule. Option names are diffusers'; schedule names are those
# of AUTOMATIC1111 and ComfyUI, matched as diffusers' own table of equivalents does.
SCHEDULES: dict[str, dict[str, Any]] = {
    AUTOMATIC: {},
    "normal": _NO_SIGMAS | {"timestep_spacing": "linspace"},
    "sgm_uniform": _NO_SIGMAS | {"timestep_spacing": "trailing"},
    "ddim_uniform": _NO_SIGMAS | {"timestep_spacing": "leading"},
    "karras": _NO_SIGMAS | {"use_karras_sigmas": True},
    "exponential": _NO_SIGMAS | {"use_exponential_sigmas": True},
    "beta": _NO_SIGMAS | {"use_beta_sigmas": True},
}

# Which schedules a class supports follows from the options it accepts, with two exceptions: LCM and TCD must walk
# along the timesteps they were distilled on, and diffusion solvers turned to flow (`use_flow_sigmas`) accept the
# other schedules' options but answer them with NaN. Both keep to their own schedule.
_SPACED = frozenset({AUTOMATIC, "normal", "sgm_uniform", "ddim_uniform"})
_SIGMAS = frozenset({AUTOMATIC, "karras", "exponential", "beta"})
_ALL = _SPACED | _SIGMAS
_OWN = frozenset({AUTOMATIC})


@dataclass(frozen=True)
class Method:
    """One diffusers scheduler class, the options that make it this sampler, and the schedules and steps it supports.

    `sigmas_on_device` marks a class that multiplies latents by sigmas that are not scalars. `order` is how often a step
    evaluates the network, but for the last one, which ends at a sigma of zero.
    """

    class_name: str
    schedules: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = MAX_STEPS
    sigmas_on_device: bool = False
    order: int = 1

    def evaluations(self, steps: int) -> int:
        """Of the network, by so many steps; "PNDM" takes one more."""
        return self.order * (steps - 1) + 1


@dataclass(frozen=True)
class Sampler:
    """A sampler for diffusion models, for flow models, or for both."""

    diffusion: Method | None = None
    flow: Method | None = None
    aliases: tuple[str, ...] = ()

    def method(self, prediction: Prediction) -> Method | None:
        return self.diffusion if prediction is Prediction.DIFFUSION else self.flow


_FLOW = _NO_SIGMAS | {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_DISTILLED_STEPS = 50
"""On how many timesteps a consistency model was distilled: diffusers' default, and the most that it takes."""
_DISTILLED = {"original_inference_steps": _DISTILLED_STEPS}


def _multistep(order: int, algorithm: str) -> Sampler:
    options = {"solver_order": order, "algorithm_type": algorithm}
    name = "DPMSolverMultistepScheduler"
    # A final sigma of zero needs the last step to be of first order, or it divides by zero on some schedules.
    return Sampler(Method(name, _ALL, options | {"euler_at_final": True}), Method(name, _OWN, options | _FLOW))


SAMPLERS: dict[str, Sampler] = {
    "Euler": Sampler(Method("EulerDiscreteScheduler", _ALL), Method("FlowMatchEulerDiscreteScheduler", _SIGMAS)),
    "Euler a": Sampler(
        Method("EulerAncestralDiscreteScheduler", _SPACED),
        Method("LTXEulerAncestralRFScheduler", _OWN, sigmas_on_device=True),
        aliases=("euler ancestral",),
    ),
    "Euler stochastic": Sampler(flow=Method("FlowMatchEulerDiscreteScheduler", _SIGMAS, {"stochastic_sampling": True})),
    "Heun": Sampler(
        Method("HeunDiscreteScheduler", _ALL, order=2), Method("FlowMatchHeunDiscreteScheduler", _OWN, order=2)
    ),
    "LMS": Sampler(Method("LMSDiscreteScheduler", _ALL)),
    "DPM2": Sampler(Method("KDPM2DiscreteScheduler", _ALL, order=2), aliases=("dpm 2",)),
    "DPM2 a": Sampler(Method("KDPM2AncestralDiscreteScheduler", _ALL, order=2), aliases=("dpm2 ancestral", "dpm 2 a")),
    "DPM++ 2M": _multistep(2, "dpmsolver++"),
    "DPM++ 3M": _multistep(3, "dpmsolver++"),
    "DPM++ 2M SDE": _multistep(2, "sde-dpmsolver++"),
    "DPM++ 3M SDE": _multistep(3, "sde-dpmsolver++"),
    "DPM++ 2S": Sampler(
        Method("DPMSolverSinglestepScheduler", _SIGMAS, {"solver_order": 2, "lower_order_final": True}),
        Method("DPMSolverSinglestepScheduler", _OWN, {"solver_order": 2, "lower_order_final": True} | _FLOW),
    ),
    "DPM++ SDE": Sampler(Method("DPMSolverSDEScheduler", _ALL, order=2)),
    "DEIS": Sampler(Method("DEISMultistepScheduler", _ALL), Method("DEISMultistepScheduler", _OWN, _FLOW)),
    "UniPC": Sampler(Method("UniPCMultistepScheduler", _ALL), Method("UniPCMultistepScheduler", _OWN, _FLOW)),
    "SA-Solver": Sampler(
        Method("SASolverScheduler", _ALL), Method("SASolverScheduler", _OWN, _FLOW), aliases=("sa solver",)
    ),
    # These two clip to -1..1 unless told otherwise, which is right for pixels and ruins latents.
    "DDIM": Sampler(Method("DDIMScheduler", _SPACED, {"clip_sample": False})),
    "DDPM": Sampler(Method("DDPMScheduler", _SPACED, {"clip_sample": False})),
    "PNDM": Sampler(
        Method("PNDMScheduler", _SPACED, {"skip_prk_steps": True}),
        aliases=("plms",),
    ),
    "LCM": Sampler(
        Method("LCMScheduler", _OWN, _DISTILLED, _DISTILLED_STEPS), Method("FlowMatchLCMScheduler", _SIGMAS)
    ),
    "TCD": Sampler(Method("TCDScheduler", _OWN, _DISTILLED, _DISTILLED_STEPS)),
}


@dataclass(frozen=True)
class SamplerChoice:
    """A sampler and a schedule, by their names in the tables above."""

    sampler: str
    schedule: str


def samplers_for(prediction: Prediction) -> list[str]:
    """The samplers that models of this kind can use."""
    return [name for name, sampler in SAMPLERS.items() if sampler.method(prediction)]


def choose(prediction: Prediction, sampler: str, schedule: str | None = None) -> SamplerChoice:
    """Resolve what a client wrote ("dpm++ 2m karras", "k_euler_a", "Euler" + "beta") for one kind of model.

    Raises:
        InvalidRequest: no such sampler or schedule, or a pair that diffusers' class does not support.
    """
    name, named_schedule = _split(sampler)
    if name is None:
        raise InvalidRequest("sampler", _unknown("sampler", sampler, samplers_for(prediction)))
    wanted = _agreed(named_schedule, _schedule(schedule))
    method = SAMPLERS[name].method(prediction)
    if method is None:
        allowed = ", ".join(samplers_for(prediction))
        raise InvalidRequest(
            "sampler", f"sampler {name!r} does not work with {prediction} models; use one of: {allowed}."
        )
    if wanted not in method.schedules:
        allowed = ", ".join(sorted(method.schedules))
        raise InvalidRequest(
            "sampler" if schedule is None else "schedule",
            f"sampler {name!r} does not support schedule {wanted!r}; it supports: {allowed}.",
        )
    return SamplerChoice(name, wanted)


def build(choice: SamplerChoice, prediction: Prediction, checkpoint_config: Mapping[str, Any], seed: int) -> Any:
    """A fresh diffusers scheduler for one image, from the checkpoint's *own* scheduler config.

    Args:
        choice: from `choose`.
        prediction: the model's kind.
        checkpoint_config: `scheduler_config.json` as published with the checkpoint.
        seed: of the image; "DPM++ SDE" draws from a Brownian tree of its own and not from a generator.
    """
    import diffusers

    method = method_of(choice.sampler, prediction)
    scheduler_class = getattr(diffusers, method.class_name)
    options = dict(method.options) | SCHEDULES[choice.schedule]
    accepted = inspect.signature(scheduler_class.__init__).parameters
    # diffusers would keep what the class does not know in its config, where `use_dynamic_shifting` then lies about it.
    config = {key: value for key, value in checkpoint_config.items() if key in accepted or key.startswith("_")}
    if options.get("use_flow_sigmas"):
        options["flow_shift"] = checkpoint_config.get("shift", 1.0)
    if "noise_sampler_seed" in accepted:
        options["noise_sampler_seed"] = seed
    return scheduler_class.from_config(config, **{key: value for key, value in options.items() if key in accepted})


def set_timesteps(
    sampler: Any, choice: SamplerChoice, prediction: Prediction, steps: int, device: Any, **options: float
) -> None:
    """Lay a sampler's way out. Its timesteps and sigmas stay on the CPU: a look at the device would wait for it.

    Args:
        device: the latents' torch device.
        options: further ones of the sampler's own, such as the shift `mu`.
    """
    sampler.set_timesteps(steps, **options)
    if hasattr(sampler, "set_begin_index"):
        sampler.set_begin_index(0)
    method = SAMPLERS[choice.sampler].method(prediction)
    if method is not None and method.sigmas_on_device:
        sampler.sigmas = sampler.sigmas.to(device)


def method_of(sampler: str, prediction: Prediction) -> Method:
    """How a sampler that `choose` let through is done for models of this kind."""
    method = SAMPLERS[sampler].method(prediction)
    assert method is not None, "choose() lets no such pair through"
    return method


def check_steps(choice: SamplerChoice, prediction: Prediction, steps: int) -> None:
    """Refuse more steps than the sampler can take.

    Raises:
        InvalidRequest: naming the bound.
    """
    most = method_of(choice.sampler, prediction).max_steps
    if not 1 <= steps <= most:
        shown = steps if abs(steps) < 1e18 else "that"  # Python refuses to write out thousands of digits
        raise InvalidRequest(
            "steps", f"steps must be between 1 and {most} for sampler {choice.sampler!r}, not {shown}."
        )


def scheduler_classes(prediction: Prediction) -> frozenset[str]:
    """The diffusers scheduler classes whose configuration describes a model of this kind."""
    methods = (sampler.method(prediction) for sampler in SAMPLERS.values())
    return frozenset(method.class_name for method in methods if method is not None)


def _normal(name: str) -> str:
    """One spelling for all: "DPM++_2M", ComfyUI's "dpmpp_2m" and "dpm++  2m" are one name."""
    return " ".join(name.lower().replace("_", " ").replace("dpmpp", "dpm++").split())


@cache
def _names() -> dict[str, str]:
    names = {}
    for name, sampler in SAMPLERS.items():
        for spelling in (name, *sampler.aliases):
            names[_normal(spelling)] = name
            names["k " + _normal(spelling)] = name
    return names


def _split(written: str) -> tuple[str | None, str | None]:
    """Split a combined name such as "DPM++ 2M Karras" into sampler and schedule."""
    wanted = _normal(written)
    if wanted in _names():
        return _names()[wanted], None
    for schedule in SCHEDULES:
        ending = " " + _normal(schedule)
        if wanted.endswith(ending) and wanted.removesuffix(ending) in _names():
            return _names()[wanted.removesuffix(ending)], schedule
    return None, None


def _schedule(written: str | None) -> str | None:
    if written is None:
        return None
    wanted = _normal(written).replace(" ", "_")
    if wanted not in SCHEDULES:
        raise InvalidRequest("schedule", _unknown("schedule", written, list(SCHEDULES)))
    return wanted


def _agreed(named: str | None, explicit: str | None) -> str:
    """The schedule that a combined name and the field of its own come to; "automatic" leaves it to the name."""
    if explicit in (None, AUTOMATIC):
        return named or AUTOMATIC
    if named not in (None, explicit):
        raise InvalidRequest("schedule", f"schedule {explicit!r} contradicts the sampler's name, which says {named!r}.")
    assert explicit is not None
    return explicit


def _unknown(kind: str, written: str, known: list[str]) -> str:
    near = get_close_matches(_normal(written), [_normal(name) for name in known], n=1)
    hint = next((f" Did you mean {name!r}?" for name in known if near and _normal(name) == near[0]), "")
    return f"unknown {kind} {written[:60]!r}.{hint} Known: {', '.join(known)}."
