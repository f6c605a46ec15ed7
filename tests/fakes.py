"""A fake engine, where only scheduling is under test: steps are instant or as slow as told, failures are planted."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from pipelines.catalog import ModelEntry, Offload
from pipelines.errors import NoRoom
from pipelines.pricing import Price
from pipelines.profile import Profile
from pipelines.request import ImageRequest, TokenCount
from pipelines.samplers import Prediction
from pipelines.state import Counts, DeviceFacts, EngineState

FLAT = Profile(flops=(0.0, 1.0, 0.0), steps=((1.0, 0.001), (1e12, 0.001)), encode_seconds=1e-4, decode_seconds=1e-8)
"""A step takes as long with many rows as with one, as the fake's do."""


@dataclass(frozen=True)
class FakeConditioning:
    prompt: TokenCount = TokenCount(1)
    negative_prompt: TokenCount = TokenCount()


@dataclass
class FakeDenoising:
    """Counts its steps; nothing else."""

    request: ImageRequest
    conditioning: FakeConditioning = field(default_factory=FakeConditioning)
    evaluation: int = 0

    @property
    def rows(self) -> int:
        return 2 if self.request.guided and self.evaluation < self.request.guided_steps else 1

    @property
    def evaluations(self) -> int:
        return self.request.steps

    @property
    def finished(self) -> bool:
        return self.evaluation >= self.evaluations

    @property
    def step(self) -> int:
        return self.evaluation


@dataclass
class FakeEngine:
    """Keeps the scheduler's contract and a record of what it was asked."""

    step_seconds: float = 0.0
    resident_limit: int = 2
    failing: dict[str, Exception] = field(default_factory=dict)
    """By prompt or model name: the error that befalls it."""
    batches: list[list[ImageRequest]] = field(default_factory=list)
    decoded: list[list[ImageRequest]] = field(default_factory=list)
    previewed: list[int] = field(default_factory=list)
    """At which step each preview was drawn."""
    refused: int = 0
    loads: list[str] = field(default_factory=list)
    resident: list[str] = field(default_factory=list)

    facts: DeviceFacts = DeviceFacts("a fake")
    memory_used: int = 0
    counts: Counts = field(default_factory=Counts)

    @property
    def state(self) -> EngineState:
        return EngineState(resident=tuple(self.resident), memory_used=self.memory_used, counts=self.counts.copy())

    def read(self, entry: ModelEntry, progress: Any) -> str:
        if entry.name in self.failing:
            raise self.failing[entry.name]
        return entry.identity

    def unload(self, identity: str) -> None:
        self.resident.remove(identity)

    def measure(self, entry: ModelEntry) -> Profile:
        return FLAT

    def make_room(self, entry: ModelEntry, busy: Collection[str]) -> None:
        """There is memory to read into."""

    def place(self, entry: ModelEntry, family: Any, busy: Collection[str], progress: Any = None) -> None:
        if entry.identity in self.resident:
            return
        excess = max(0, len(self.resident) - self.resident_limit + 1)
        for idle in [name for name in self.resident if name not in busy][:excess]:
            self.resident.remove(idle)
        if len(self.resident) >= self.resident_limit:
            self.refused += 1
            raise NoRoom(f"There is no room for {entry.name}.")
        if f"place {entry.name}" in self.failing:
            raise self.failing[f"place {entry.name}"]
        self.resident.append(entry.identity)
        self.loads.append(entry.name)

    def encode(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Any]:
        return [self.failing.get(f"encode {request.prompt}", FakeConditioning()) for request in requests]

    def begin(self, entry: ModelEntry, requests: Sequence[ImageRequest], encoded: Sequence[Any]) -> list[Any]:
        pairs = zip(requests, encoded, strict=True)
        return [text if isinstance(text, Exception) else FakeDenoising(request, text) for request, text in pairs]

    def step(self, entry: ModelEntry, batch: Sequence[FakeDenoising]) -> list[Exception | None]:
        assert entry.identity in self.resident, "a step for a model that is not loaded"
        time.sleep(self.step_seconds)
        self.batches.append([image.request for image in batch])
        for image in batch:
            image.evaluation += 1
        return [self.failing.get(f"step {image.request.prompt}") for image in batch]

    def finish(self, entry: ModelEntry, batch: Sequence[FakeDenoising]) -> list[Any]:
        self.decoded.append([image.request for image in batch])
        pictures = []
        for image in batch:
            color = (image.request.seed % 256, 0, 0)
            pictures.append(
                self.failing.get(f"finish {image.request.prompt}")
                or Image.new("RGB", (image.request.width, image.request.height), color)
            )
        return pictures

    def preview(self, entry: ModelEntry, batch: Sequence[FakeDenoising]) -> list[Any]:
        self.previewed += [image.step for image in batch]
        drawn = [Image.new("RGB", (8, 8), (image.step % 256, 0, 0)) for image in batch]
        return [
            self.failing.get(f"preview {image.request.prompt}", picture)
            for image, picture in zip(batch, drawn, strict=True)
        ]


def entry(name: str = "fake", **changes: Any) -> ModelEntry:
    """A catalogue entry with everything filled in."""
    facts: dict[str, Any] = {
        "name": name,
        "family": "sdxl",
        "prediction": Prediction.DIFFUSION,
        "source": "/nowhere",
        "revision": None,
        "config": None,
        "variant": None,
        "dtype": "auto",
        "offload": Offload.NONE,
        "vae": None,
        "preview": "linear",
        "width": 64,
        "height": 64,
        "size_step": 8,
        "native_sizes": ("64x64",),
        "max_pixels": 4 * 64 * 64,
        "max_side": 256,
        "steps": 4,
        "guidance_scale": 5.0,
        "sampler": "Euler",
        "schedule": "automatic",
        "max_sequence_length": 256,
        "t5": True,
        "aliases": (),
        "license": None,
        "price": Price(),
    }
    return ModelEntry(**facts | changes)


def request(model: str = "fake", prompt: str = "a hat", **changes: Any) -> ImageRequest:
    """A settled request with everything filled in."""
    facts: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "negative_prompt": None,
        "width": 64,
        "height": 64,
        "steps": 4,
        "guidance_scale": 5.0,
        "sampler": "Euler",
        "schedule": "automatic",
        "seed": 0,
    }
    return ImageRequest(**facts | changes)
