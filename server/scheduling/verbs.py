"""What the scheduler may ask of an engine, and what comes back from a visit to the thread that owns it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from pipelines.catalog import ModelEntry, name_of
from pipelines.profile import Profile
from pipelines.progress import LoadStage, Progress
from pipelines.request import ImageRequest
from pipelines.state import DeviceFacts, EngineState
from server.gpu import WorkerThread
from server.scheduling.meter import Meter

T = TypeVar("T")

LEAST_PATIENCE = 60.0
"""Seconds that work is given at least before it counts as hanging."""

PATIENCE_FACTOR = 20
"""How many times its expected time it is given."""

UNKNOWN_PATIENCE = 2 * 3600.0
"""Seconds for work of which nobody knows how long it takes, such as the first step of a model that was not measured.
Beyond what is slow but sound: 16 rows of SDXL at 1536x1536 would take two CPU cores (50 GFLOP/s) an hour and a half."""

ODD_SECONDS = 30.0
"""What small work is expected to take at most that nobody measures: an unload, a preview."""


class EngineVerbs(Protocol):
    """What the scheduler asks of an engine; a list holds a failure in the failed one's place.

    All of it is the GPU thread's, but for `read`, which is the loader thread's and touches nothing that others see, and
    `facts`, which never change. A model is there after make_room, read, place.
    """

    @property
    def facts(self) -> DeviceFacts: ...
    @property
    def state(self) -> EngineState: ...
    def make_room(self, entry: ModelEntry, busy: Collection[str]) -> None: ...
    def read(self, entry: ModelEntry, progress: Progress) -> Any: ...
    def place(self, entry: ModelEntry, family: Any, busy: Collection[str], progress: Progress) -> None: ...
    def unload(self, identity: str) -> None: ...
    def measure(self, entry: ModelEntry) -> Profile: ...
    def encode(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Any]: ...
    def begin(self, entry: ModelEntry, requests: Sequence[ImageRequest], encoded: Sequence[Any]) -> list[Any]: ...
    def step(self, entry: ModelEntry, batch: Sequence[Any]) -> list[Exception | None]: ...
    def finish(self, entry: ModelEntry, batch: Sequence[Any]) -> list[Any]: ...
    def preview(self, entry: ModelEntry, batch: Sequence[Any]) -> list[Any]: ...


@dataclass(frozen=True)
class _Visit(Generic[T]):
    """What a visit to the GPU thread came to, the engine's state after it, and the seconds of its work alone."""

    outcome: T | Exception
    state: EngineState
    seconds: float


class Visits:
    """The way to the engine: one visit to its thread at a time, each of which brings back the engine's state."""

    def __init__(self, engine: EngineVerbs, gpu: WorkerThread, meter: Meter) -> None:
        self.engine = engine
        self.state = EngineState()
        """The engine's, when the GPU thread last reported."""
        self._gpu = gpu
        self._meter = meter

    async def __call__(self, work: Callable[[], T], expected: float | None = None) -> tuple[T, float]:
        """Have the GPU thread do some work; its result and its seconds. What it raised is raised here.

        Args:
            expected: how many seconds such work takes, where that is known. Far beyond them it counts as hanging.

        Raises:
            DeviceLost: the device failed for good, or the work hangs.
        """
        patience = UNKNOWN_PATIENCE if expected is None else max(LEAST_PATIENCE, PATIENCE_FACTOR * expected)
        visit = await self._gpu.within(patience, _visited, self.engine, work)
        for gone in set(self.state.resident) - set(visit.state.resident):
            self._meter.unloaded(name_of(gone), gone in visit.state.parked)
        self.state = visit.state
        if isinstance(visit.outcome, Exception):
            raise visit.outcome
        return visit.outcome, visit.seconds

    def with_heartbeat(self, progress: Progress) -> Progress:
        """The same telling for work of a visit, each word of which also shows that the work gets on."""

        def tell(stage: LoadStage, share: float) -> None:
            self._gpu.heartbeat()
            progress(stage, share)

        return tell


def _visited(engine: EngineVerbs, work: Callable[[], T]) -> _Visit[T]:
    """On the GPU thread: work that failed may have evicted a model, so it reports as any other does."""
    outcome: T | Exception
    began = monotonic()
    try:
        outcome = work()
    except Exception as error:
        outcome = error
    return _Visit(outcome, engine.state, monotonic() - began)


def prepare(engine: EngineVerbs, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Any] | None:
    """Everything before an image's first step, in one visit to the GPU thread; None if its model went meanwhile."""
    if entry.identity not in engine.state.resident:
        return None
    return engine.begin(entry, requests, engine.encode(entry, requests))
