"""What the scheduler may ask of an engine, and what comes back from a visit to the thread that owns it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from pipelines.catalog import ModelEntry
from pipelines.request import ImageRequest
from pipelines.state import EngineState

T = TypeVar("T")


class EngineVerbs(Protocol):
    """What the scheduler asks of an engine, on the GPU thread; a list holds a failure in the failed one's place."""

    @property
    def state(self) -> EngineState: ...
    def load(self, entry: ModelEntry, busy: set[str]) -> None: ...
    def encode(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Any]: ...
    def begin(self, entry: ModelEntry, requests: Sequence[ImageRequest], encoded: Sequence[Any]) -> list[Any]: ...
    def step(self, entry: ModelEntry, batch: Sequence[Any]) -> list[Exception | None]: ...
    def finish(self, entry: ModelEntry, batch: Sequence[Any]) -> list[Any]: ...


@dataclass(frozen=True)
class Visit(Generic[T]):
    """What a visit to the GPU thread came to, the engine's state after it, and the seconds of its work alone."""

    outcome: T | Exception
    state: EngineState
    seconds: float

    @property
    def result(self) -> T:
        """What the work returned; what it raised is raised here."""
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def visited(engine: EngineVerbs, work: Callable[[], T]) -> Visit[T]:
    """On the GPU thread: work that failed may have evicted a model, so it reports as any other does."""
    outcome: T | Exception
    began = monotonic()
    try:
        outcome = work()
    except Exception as error:
        outcome = error
    return Visit(outcome, engine.state, monotonic() - began)
