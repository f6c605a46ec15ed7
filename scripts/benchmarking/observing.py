"""Watching a server from inside its process: batch sizes, first steps, and where a request's time goes."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any, ParamSpec, TypeVar

import torch
from PIL.Image import Image

from pipelines.catalog import ModelEntry
from pipelines.denoising import Conditioning, Denoising
from pipelines.device import Device
from pipelines.engine import Engine
from pipelines.family import Family
from pipelines.progress import Progress, untold
from pipelines.request import ImageRequest

P = ParamSpec("P")
T = TypeVar("T")

NETWORKS = ("encode", "predict", "decode")
"""The methods of a Family that are networks and nothing else."""

VERBS = "engine."
"""What the names of the engine's own spans begin with."""


@dataclass
class Observations:
    """What was seen since the last time anybody asked.

    Attributes:
        batches: images in each forward pass.
        first_steps: by seed, when the image's first step was done on the machine's monotonic clock.
        seconds: spent in each span, by name.
    """

    batches: list[int] = field(default_factory=list)
    first_steps: dict[int, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class Observer:
    """Collects observations; written on the thread that computes, read when that thread is idle."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._pending: list[tuple[str, Any, Any]] = []
        self._seen = Observations()

    def stepped(self, seeds: Sequence[int]) -> None:
        """These images rode one forward pass together."""
        self._seen.batches.append(len(seeds))
        for seed in seeds:
            self._seen.first_steps.setdefault(seed, monotonic())

    def drain(self) -> Observations:
        """Hand over what was seen, and begin anew."""
        for name, start, end in self._pending:
            end.synchronize()
            self._seen.seconds[name] += start.elapsed_time(end) / 1000
        self._pending.clear()
        seen, self._seen = self._seen, Observations()
        return seen

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time what the calling thread does."""
        began = perf_counter()
        yield
        self._seen.seconds[name] += perf_counter() - began

    @contextmanager
    def network(self, name: str) -> Iterator[None]:
        """Time a network: on CUDA by events, which ask the GPU to wait for nothing."""
        if not self._cuda:
            with self.span(name):
                yield
            return
        start, end = _event(), _event()
        start.record()
        yield
        end.record()
        self._pending.append((name, start, end))

    def watch(self, family: Any) -> None:
        """Time a loaded model's networks from now on."""
        for name in NETWORKS:
            setattr(family, name, self._timed(name, getattr(family, name)))

    def _timed(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.network(name):
                return function(*args, **kwargs)

        return timed


def _event() -> Any:
    event: Any = torch.cuda.Event
    return event(enable_timing=True)


class ObservedEngine(Engine):
    """The server's own engine, watched."""

    def __init__(self, device: Device, observer: Observer) -> None:
        super().__init__(device)
        self._observer = observer

    def place(
        self, entry: ModelEntry, family: Family | None, busy: Collection[str] = (), progress: Progress = untold
    ) -> None:
        super().place(entry, family, busy, progress)
        if family is not None and self.family(entry) is family:  # read just now
            self._observer.watch(family)

    def encode(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Conditioning | Exception]:
        with self._observer.span(f"{VERBS}encode"):
            return super().encode(entry, requests)

    def begin(
        self, entry: ModelEntry, requests: Sequence[ImageRequest], encoded: Sequence[Conditioning | Exception]
    ) -> list[Denoising | Exception]:
        with self._observer.span(f"{VERBS}begin"):
            return super().begin(entry, requests, encoded)

    def step(self, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Exception | None]:
        with self._observer.span(f"{VERBS}step"):
            outcomes = super().step(entry, batch)
        self._observer.stepped([image.request.seed for image in batch])
        return outcomes

    def finish(self, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Image | Exception]:
        with self._observer.span(f"{VERBS}finish"):
            return super().finish(entry, batch)
