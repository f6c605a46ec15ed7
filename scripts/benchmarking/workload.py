"""What is asked of the servers: classes of requests, and traces of their arrivals. Pure, and the same for a seed."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

from pipelines.catalog import ModelEntry

FIRST_SEED = 1_000
QUICK_STEPS = 4
QUICK_SHARE = 0.15
"""The share of few-step requests without guidance in the mixed workload: what a preview or a Turbo model sends."""

VARIED_SHARE = 0.5
"""The share of the mixed workload's other requests that choose their own sampler and guidance scale."""

SIZES = ((0.5, 20, 0.15), (0.75, 20, 0.25), (1.0, 25, 0.45), (1.5, 35, 0.15))
"""Factor of the model's native side, steps and share: vllm-omni's Dataset C (512, 768, 1024 and 1536 pixels)."""

_SAMPLERS = ("Euler", "Euler a", "DPM++ 2M", "UniPC")
_GUIDANCE = (3.0, 5.0, 7.5)
_TIMES = ("a sunrise", "a sunset", "a clear day", "a starry night", "a full moon", "a cloudy dusk")
_LANDS = ("mountains", "green hills", "the sea", "a desert", "a forest", "a city")


@dataclass(frozen=True)
class Kind:
    """A class of requests that cost the same alone. Without guidance a request takes half the rows."""

    width: int
    height: int
    steps: int
    share: float
    guided: bool = True
    varied: bool = False

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height} {self.steps} steps" + ("" if self.guided else " unguided")

    def body(self, random: Random, number: int) -> dict[str, Any]:
        """The JSON of the number-th request of a trace. Its seed is the number's own, by which it is found again."""
        body: dict[str, Any] = {
            "prompt": f"{random.choice(_TIMES)} over {random.choice(_LANDS)}, number {number}",
            "width": self.width,
            "height": self.height,
            "steps": self.steps,
            "seed": FIRST_SEED + number,
            "response_format": "b64_json",
        }
        if not self.guided:
            return body | {"guidance_scale": 1.0, "sampler": "LCM"}
        if self.varied and random.random() < VARIED_SHARE:
            return body | {"guidance_scale": random.choice(_GUIDANCE), "sampler": random.choice(_SAMPLERS)}
        return body


@dataclass(frozen=True)
class Arrival:
    """One request of a trace, `at` seconds after its start."""

    at: float
    kind: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A mixture of classes."""

    name: str
    kinds: tuple[Kind, ...]

    def trace(self, rate: float, count: int, seed: int = 0) -> list[Arrival]:
        """Poisson arrivals: `count` of them, `rate` a second. Another rate gives the same requests, closer together."""
        random = Random(seed)
        gaps = [random.expovariate(1.0) / rate for _ in range(count)]
        chooser = Random(f"{self.name} {seed}")
        kinds = [chooser.choices(self.kinds, [kind.share for kind in self.kinds])[0] for _ in range(count)]
        writer = Random(f"{self.name} {seed} prompts")
        return [
            Arrival(at, kind.name, kind.body(writer, number))
            for number, (at, kind) in enumerate(zip(accumulate(gaps), kinds, strict=True))
        ]


def uniform(entry: ModelEntry, size_factor: float = 1.0, step_factor: float = 1.0) -> Workload:
    """Everybody asks for the model's own size, steps, sampler and guidance: the best case for any batching."""
    width, height = scaled_size(entry, size_factor)
    return Workload("uniform", (Kind(width, height, _scaled_steps(entry.steps, step_factor), 1.0),))


def mixed(entry: ModelEntry, size_factor: float = 1.0, step_factor: float = 1.0) -> Workload:
    """Four sizes, four step counts, samplers and guidance of people's own choice, and quick unguided ones."""
    kinds = [
        Kind(
            *scaled_size(entry, factor * size_factor),
            _scaled_steps(steps, step_factor),
            share * (1 - QUICK_SHARE),
            varied=True,
        )
        for factor, steps, share in SIZES
    ]
    quick = Kind(*scaled_size(entry, size_factor), _scaled_steps(QUICK_STEPS, step_factor), QUICK_SHARE, guided=False)
    return Workload("mixed", (*kinds, quick))


WORKLOADS: dict[str, Callable[[ModelEntry, float, float], Workload]] = {"uniform": uniform, "mixed": mixed}


def scaled_size(entry: ModelEntry, factor: float) -> tuple[int, int]:
    """The model's own size times a factor, in the pixels it can make."""
    step = entry.size_step
    width, height = (max(step, round(side * factor / step) * step) for side in (entry.width, entry.height))
    return width, height


def _scaled_steps(steps: int, factor: float) -> int:
    return max(1, round(steps * factor))
