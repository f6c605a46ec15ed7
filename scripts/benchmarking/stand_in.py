"""An engine that computes nothing: its steps sleep, its pictures are drawn beforehand. For what is not the device's."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
from PIL import Image

from pipelines.catalog import ModelEntry
from pipelines.profile import Profile
from pipelines.request import ImageRequest, TokenCount
from pipelines.state import DeviceFacts, EngineState

PROFILE = Profile(flops=(0.0, 1.0, 0.0), steps=((1.0, 0.001), (1e12, 0.001)), encode_seconds=1e-4, decode_seconds=1e-8)
"""A step takes as long with many rows as with one."""


@dataclass(frozen=True)
class Conditioning:
    """Texts that nobody encoded."""

    prompt: TokenCount = TokenCount(1)
    negative_prompt: TokenCount = TokenCount()


@dataclass
class Denoising:
    """An image in flight, which only counts its steps."""

    request: ImageRequest
    conditioning: Conditioning
    evaluation: int = 0

    @property
    def rows(self) -> int:
        return self.request.rows

    @property
    def evaluations(self) -> int:
        return self.request.steps

    @property
    def step(self) -> int:
        return self.evaluation


@dataclass
class StandIn:
    """Keeps the scheduler's contract.

    Attributes:
        step_seconds: of each step.
        side: of every picture, whatever was asked for: what encoding one costs does not depend on who drew it.
    """

    step_seconds: float
    side: int
    facts: DeviceFacts = DeviceFacts("none: steps sleep")
    resident: list[str] = field(default_factory=list)
    picture: Image.Image = field(init=False)

    def __post_init__(self) -> None:
        across = numpy.linspace(0, 255, self.side)
        grain = numpy.random.default_rng(0).normal(0, 4, (self.side, self.side, 3))
        drawn = numpy.add.outer(across, across)[:, :, None] / 2 + grain
        self.picture = Image.fromarray(drawn.clip(0, 255).astype(numpy.uint8))

    @property
    def state(self) -> EngineState:
        return EngineState(resident=tuple(self.resident))

    def make_room(self, entry: ModelEntry, busy: Collection[str]) -> None:
        """There is room."""

    def read(self, entry: ModelEntry, progress: Any) -> str:
        return entry.identity

    def place(self, entry: ModelEntry, family: Any, busy: Collection[str], progress: Any) -> None:
        self.resident.append(entry.identity)

    def unload(self, identity: str) -> None:
        self.resident.remove(identity)

    def measure(self, entry: ModelEntry) -> Profile:
        return PROFILE

    def encode(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Any]:
        return [Conditioning() for _ in requests]

    def begin(self, entry: ModelEntry, requests: Sequence[ImageRequest], encoded: Sequence[Any]) -> list[Any]:
        return [Denoising(request, text) for request, text in zip(requests, encoded, strict=True)]

    def step(self, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Exception | None]:
        time.sleep(self.step_seconds)
        for image in batch:
            image.evaluation += 1
        return [None for _ in batch]

    def finish(self, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Any]:
        return [self.picture.copy() for _ in batch]

    def preview(self, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Any]:
        return [self.picture.resize((64, 64)) for _ in batch]
