"""Samplers: every name and pair of the table resolves, is what diffusers accepts, and gives finite latents."""

import inspect
from copy import deepcopy
from typing import Any

import diffusers
import pytest
import torch

from pipelines.errors import InvalidRequest
from pipelines.samplers import (
    AUTOMATIC,
    MAX_STEPS,
    SAMPLERS,
    SCHEDULES,
    Method,
    Prediction,
    SamplerChoice,
    build,
    check_steps,
    choose,
    method_of,
    samplers_for,
    scheduler_classes,
)

DIFFUSION, FLOW = Prediction.DIFFUSION, Prediction.FLOW
# Scheduler configurations as checkpoints are published with: SDXL's own, Turbo's, a zero-terminal-SNR v-prediction
# fine-tune's, and SD3's with and without the shift that depends on resolution.
SDXL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SD3 = {"num_train_timesteps": 1000, "shift": 3.0}
DYNAMIC = SD3 | {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
CONFIGS = {DIFFUSION: SDXL, FLOW: SD3}

METHODS = [
    pytest.param(kind, name, method, id=f"{kind}-{name}")
    for kind in Prediction
    for name, sampler in SAMPLERS.items()
    if (method := sampler.method(kind)) is not None
]
every_method = pytest.mark.parametrize(("kind", "name", "method"), METHODS)


def sample(built: Any, steps: int) -> torch.Tensor:
    """Denoise with a network that predicts a share of its input; a copy, since some samplers are slow to build."""
    sampler = deepcopy(built)
    sampler.set_timesteps(steps, **({"mu": 0.8} if sampler.config.get("use_dynamic_shifting") else {}))
    if hasattr(sampler, "set_begin_index"):
        sampler.set_begin_index(0)
    generator = torch.Generator().manual_seed(0)
    draws = {"generator": generator} if "generator" in inspect.signature(sampler.step).parameters else {}
    latents = torch.randn(1, 4, 4, 4, generator=generator) * getattr(sampler, "init_noise_sigma", 1.0)
    for timestep in sampler.timesteps:
        scaled = sampler.scale_model_input(latents, timestep) if hasattr(sampler, "scale_model_input") else latents
        latents = sampler.step(0.3 * scaled, timestep, latents, return_dict=False, **draws)[0]
    return latents


@every_method
def test_every_pair_gives_finite_latents(kind: Prediction, name: str, method: Method) -> None:
    for schedule in sorted(method.schedules):
        built = build(SamplerChoice(name, schedule), kind, CONFIGS[kind], seed=0)
        for steps in (1, 2, 4, 20):
            latents = sample(built, steps)
            assert torch.isfinite(latents).all(), (schedule, steps)
            assert latents.abs().max() < 1e4, (schedule, steps)


@every_method
def test_other_published_configurations_work_too(kind: Prediction, name: str, method: Method) -> None:
    others = {DIFFUSION: [SDXL | ZERO_SNR], FLOW: [DYNAMIC, SD3 | {"use_karras_sigmas": True}]}
    for config in others[kind]:
        built = build(SamplerChoice(name, AUTOMATIC), kind, config, seed=0)
        for steps in (1, 4):
            assert torch.isfinite(sample(built, steps)).all(), config


@every_method
def test_the_most_steps_work(kind: Prediction, name: str, method: Method) -> None:
    sampler = build(SamplerChoice(name, AUTOMATIC), kind, CONFIGS[kind], seed=0)
    sampler.set_timesteps(method.max_steps)
    assert len(sampler.timesteps) >= method.max_steps


@every_method
@pytest.mark.parametrize("steps", [4, 20])
def test_the_evaluations_of_so_many_steps_are_known_beforehand(
    kind: Prediction, name: str, method: Method, steps: int
) -> None:
    sampler = build(SamplerChoice(name, AUTOMATIC), kind, CONFIGS[kind], seed=0)
    sampler.set_timesteps(steps)
    assert len(sampler.timesteps) == method.evaluations(steps) + (name == "PNDM")


@every_method
def test_the_schedules_are_those_that_the_class_accepts(kind: Prediction, name: str, method: Method) -> None:
    accepted = inspect.signature(getattr(diffusers, method.class_name).__init__).parameters
    expected = {
        schedule for schedule, options in SCHEDULES.items() if any(options.values()) and _turned_on(options) in accepted
    }
    if "use_flow_sigmas" in accepted and kind is FLOW:
        expected = set()  # accepted, and answered with NaN: see below
    if name in ("LCM", "TCD") and kind is DIFFUSION:
        expected = set()  # they must walk along the timesteps that they were distilled on
    assert method.schedules == expected | {AUTOMATIC}


def _turned_on(options: dict[str, Any]) -> str:
    return next(key for key, value in options.items() if value)


@pytest.mark.parametrize("schedule", ["karras", "exponential", "beta"])
def test_flow_solvers_answer_other_schedules_with_nan(schedule: str) -> None:
    """The reason why the table is narrower than diffusers' options; if this fails, widen it."""
    method = SAMPLERS["DPM++ 2M"].method(FLOW)
    assert method is not None
    solver = diffusers.DPMSolverMultistepScheduler(**(dict(method.options) | SCHEDULES[schedule]))
    solver.set_timesteps(4)
    latents = torch.ones(1, 4, 4, 4)
    for timestep in solver.timesteps:
        latents = solver.step(0.3 * latents, timestep, latents, return_dict=False)[0]
    assert not torch.isfinite(latents).all()


@every_method
def test_every_option_of_the_table_is_one_of_the_classes(kind: Prediction, name: str, method: Method) -> None:
    accepted = inspect.signature(getattr(diffusers, method.class_name).__init__).parameters
    # `prediction_type` and the schedules' switches are for the classes that have them.
    assert {key for key in method.options if not key.startswith("use_")} <= accepted.keys() | {"prediction_type"}


def test_a_sampler_keeps_no_configuration_that_its_class_does_not_know() -> None:
    heun = build(SamplerChoice("Heun", AUTOMATIC), FLOW, DYNAMIC, seed=0)
    assert heun.config.get("use_dynamic_shifting") is None
    assert heun.config.shift == 3.0


def test_the_checkpoints_own_configuration_decides_where_the_choice_does_not() -> None:
    assert build(SamplerChoice("Euler", AUTOMATIC), DIFFUSION, SDXL, 0).config.timestep_spacing == "leading"
    assert build(SamplerChoice("Euler", "normal"), DIFFUSION, SDXL, 0).config.timestep_spacing == "linspace"
    karras = SDXL | {"use_karras_sigmas": True}
    assert build(SamplerChoice("Euler", AUTOMATIC), DIFFUSION, karras, 0).config.use_karras_sigmas
    assert not build(SamplerChoice("Euler", "normal"), DIFFUSION, karras, 0).config.use_karras_sigmas
    assert build(SamplerChoice("UniPC", AUTOMATIC), FLOW, SD3, 0).config.flow_shift == 3.0


def test_the_seed_reaches_the_sampler_that_draws_for_itself() -> None:
    choice = SamplerChoice("DPM++ SDE", AUTOMATIC)
    assert build(choice, DIFFUSION, SDXL, seed=7).config.noise_sampler_seed == 7


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_name_resolves_in_every_spelling(name: str) -> None:
    kind = DIFFUSION if SAMPLERS[name].diffusion else FLOW
    for written in (name, *SAMPLERS[name].aliases):
        under = written.replace(" ", "_")
        for spelling in (written, written.upper(), written.lower(), under, f"k_{under}", f"  {written}  "):
            assert choose(kind, spelling) == SamplerChoice(name, AUTOMATIC), spelling


@every_method
def test_every_combined_name_resolves(kind: Prediction, name: str, method: Method) -> None:
    for schedule in method.schedules:
        for spelling in (schedule, schedule.title(), schedule.replace("_", " ").upper()):
            assert choose(kind, f"{name} {spelling}") == SamplerChoice(name, schedule)
            assert choose(kind, name, spelling) == SamplerChoice(name, schedule)


@pytest.mark.parametrize(
    ("written", "name", "schedule"),
    [
        ("DPM++ 2M Karras", "DPM++ 2M", "karras"),
        ("k_euler_a", "Euler a", AUTOMATIC),
        ("K_EULER_ANCESTRAL", "Euler a", AUTOMATIC),
        ("dpm++_2m", "DPM++ 2M", AUTOMATIC),
        ("dpmpp_2m_sde", "DPM++ 2M SDE", AUTOMATIC),
        ("k_dpmpp_3m_sde_exponential", "DPM++ 3M SDE", "exponential"),
        ("Euler SGM Uniform", "Euler", "sgm_uniform"),
        ("plms", "PNDM", AUTOMATIC),
    ],
)
def test_the_names_of_other_programs_resolve(written: str, name: str, schedule: str) -> None:
    assert choose(DIFFUSION, written) == SamplerChoice(name, schedule)


def test_a_name_and_a_schedule_must_agree() -> None:
    assert choose(DIFFUSION, "Euler Karras", "automatic").schedule == "karras"
    assert choose(DIFFUSION, "Euler Karras", "Karras").schedule == "karras"
    with pytest.raises(InvalidRequest, match="'beta' contradicts the sampler's name, which says 'karras'") as caught:
        choose(DIFFUSION, "Euler Karras", "beta")
    assert caught.value.field == "schedule"


@pytest.mark.parametrize(
    ("written", "meant"),
    [("Euler b", "Euler a"), ("dpm+ 2m", "DPM++ 2M"), ("DMIM", "DDIM"), ("dpm++ 2m sdee", "DPM++ 2M SDE")],
)
def test_an_unknown_sampler_suggests_the_nearest(written: str, meant: str) -> None:
    with pytest.raises(InvalidRequest, match="Known: Euler, ") as caught:
        choose(DIFFUSION, written)
    assert f"Did you mean {meant!r}?" in str(caught.value)
    assert caught.value.field == "sampler"


@pytest.mark.parametrize("written", ["", "x" * 10_000, "karras", "\u0000"])
def test_what_is_no_sampler_is_refused_shortly(written: str) -> None:
    with pytest.raises(InvalidRequest, match="unknown sampler") as caught:
        choose(FLOW, written)
    assert len(str(caught.value)) < 400


def test_an_unknown_schedule_suggests_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match="unknown schedule 'karas'. Did you mean 'karras'") as caught:
        choose(DIFFUSION, "Euler", "karas")
    assert caught.value.field == "schedule"


@pytest.mark.parametrize("kind", list(Prediction))
def test_a_pair_that_is_not_supported_says_what_is(kind: Prediction) -> None:
    for name, sampler in SAMPLERS.items():
        method = sampler.method(kind)
        if method is None:
            with pytest.raises(InvalidRequest, match=f"does not work with {kind} models; use one of: Euler, "):
                choose(kind, name)
            continue
        for schedule in SCHEDULES.keys() - method.schedules:
            with pytest.raises(InvalidRequest, match="it supports: automatic") as caught:
                choose(kind, name, schedule)
            assert caught.value.field == "schedule"
            with pytest.raises(InvalidRequest, match="it supports: automatic") as caught:
                choose(kind, f"{name} {schedule}")
            assert caught.value.field == "sampler"


def test_steps_beyond_a_samplers_own_bound_are_refused() -> None:
    pairs = (("LCM", DIFFUSION), ("LCM", FLOW), ("Euler", FLOW))
    assert [method_of(*pair).max_steps for pair in pairs] == [50, MAX_STEPS, MAX_STEPS]
    check_steps(SamplerChoice("TCD", AUTOMATIC), DIFFUSION, 50)
    for steps in (0, -1, 51, 10**5000):
        with pytest.raises(InvalidRequest, match="steps must be between 1 and 50 for sampler 'TCD'") as caught:
            check_steps(SamplerChoice("TCD", AUTOMATIC), DIFFUSION, steps)
        assert caught.value.field == "steps"


def test_diffusers_itself_refuses_the_steps_that_the_table_does() -> None:
    with pytest.raises(ValueError, match="smaller than `num_inference_steps`"):
        build(SamplerChoice("LCM", AUTOMATIC), DIFFUSION, SDXL, 0).set_timesteps(51)


def test_each_kind_of_model_has_its_samplers_and_its_schedulers() -> None:
    assert "Euler stochastic" in samplers_for(FLOW)
    assert "Euler stochastic" not in samplers_for(DIFFUSION)
    assert "FlowMatchEulerDiscreteScheduler" in scheduler_classes(FLOW) - scheduler_classes(DIFFUSION)
    assert "EulerDiscreteScheduler" in scheduler_classes(DIFFUSION) - scheduler_classes(FLOW)
