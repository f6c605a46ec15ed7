"""Models on their way to the device and away from it: which is wanted next, which must wait for room, which may go."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic

from pipelines.catalog import ModelEntry, name_of
from pipelines.errors import DeviceLost, NoRoom, NotRead
from pipelines.progress import LoadStage, Progress
from server.gpu import WorkerThread
from server.scheduling import policy
from server.scheduling.books import Books
from server.scheduling.queue import Ticket
from server.scheduling.verbs import ODD_SECONDS, Visits

log = logging.getLogger(__name__)

APART_SECONDS = 5 * 60
"""How long two models that did not fit together are not tried again: a shortage may have had another cause."""


LOAD_SECONDS = 2 * 60.0
"""What making room for a model, placing it (each of its warm-ups by itself, which may compile) or measuring it takes at
most, roughly: the watchdog waits a multiple of this, in which even two CPU cores would measure a model at full size."""


@dataclass(frozen=True)
class Loading:
    """A model on its way to the device: what is being done, what share of that is done, and since when."""

    identity: str
    stage: LoadStage
    share: float
    since: float

    @property
    def model(self) -> str:
        """Its name."""
        return name_of(self.identity)


class Models:
    """Loads and unloads, one model at a time. Used on the event loop alone.

    Args:
        loader: the thread that reads files, while other models' steps go on.
        idle_seconds: unload a model that nobody used for so long; 0 for never.
    """

    def __init__(self, visits: Visits, loader: WorkerThread, books: Books, idle_seconds: float = 0) -> None:
        self.loading: Loading | None = None
        self._visits = visits
        self._loader = loader
        self._books = books
        self._idle_seconds = idle_seconds
        self._wanted: dict[str, tuple[ModelEntry, asyncio.Future[None]]] = {}
        self._retired = frozenset[str]()
        self._took: dict[tuple[str, bool], float] = {}
        """Seconds of each model's last load, from its files or from where it was parked."""
        self._used: dict[str, float] = {}
        self._apart: dict[tuple[str, frozenset[str]], float] = {}
        """A model that did not fit beside others, those others, and until when that is believed."""

    def want(self, entry: ModelEntry) -> asyncio.Future[None]:
        """Have a model loaded before anybody asks for it.

        Done when it is there, or once it is known to wait for room beside busy ones; or raises why it cannot be.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if entry.identity in self.resident:
            future.set_result(None)
            return future
        return self._wanted.setdefault(entry.identity, (entry, future))[1]

    def retire(self, identities: Collection[str]) -> None:
        """Name the models that are offered no longer, all of them: they leave once idle."""
        self._retired = frozenset(identities)
        for identity in self._retired & self._wanted.keys():
            self._settle(identity)

    def seconds_to_come(self, identity: str) -> float:
        """Until a model is there, by its last load or else the longest of all; 0 for one that is."""
        if identity in self.resident:
            return 0.0
        present = 0.0  # of the load under way, what is left
        if self.loading is not None:
            present = max(0.0, self._expected(self.loading.identity) - (monotonic() - self.loading.since))
            if self.loading.identity == identity:
                return present
        return present + self._expected(identity)

    def _expected(self, identity: str) -> float:
        """Seconds of a load."""
        known = self._took.get((identity, identity in self._visits.state.parked))
        return max(self._took.values(), default=0.0) if known is None else known

    def used(self, identity: str) -> None:
        """Somebody's image is made with it."""
        self._used[identity] = monotonic()

    def crowded_out(self, busy: Collection[str]) -> set[str]:
        """The models for which there is no room while the busy ones stay."""
        return {lacking for lacking, others in self._pairs_apart() if others.issubset(busy)}

    def crowding(self, model: str, busy: Collection[str]) -> set[str]:
        """The models in whose way this one is, or would be, beside the busy ones."""
        there = {model, *busy}
        return {lacking for lacking, others in self._pairs_apart() if model in others and others.issubset(there)}

    def _pairs_apart(self) -> Iterable[tuple[str, frozenset[str]]]:
        now = monotonic()
        self._apart = {pair: until for pair, until in self._apart.items() if now < until}
        return [pair for pair in self._apart if pair[0] not in self.resident]

    @property
    def resident(self) -> tuple[str, ...]:
        """The identities of the models on the device."""
        return self._visits.state.resident

    def next(self, waiting: Sequence[Ticket], busy: Collection[str]) -> ModelEntry | None:
        """The model to load now, if any: of the foremost image without one, else one wanted ahead."""
        lacking = self.crowded_out(busy).union(self.resident)
        image = policy.next_model(waiting, {ticket.key.model for ticket in waiting} - lacking)
        if image is not None:
            return image.entry
        return next((entry for identity, (entry, _) in self._wanted.items() if identity not in lacking), None)

    async def bring(self, entry: ModelEntry, busy: Callable[[], Collection[str]]) -> None:
        """Read a model's files unless it is parked, put it on the device, and learn what its work costs there.

        Where there is no room for it, that is remembered, and it waits.

        Args:
            busy: the models with images in flight, which stay.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        log.info("loading model %s", entry.name)
        began = monotonic()
        engine, progress = self._visits.engine, self._teller(entry)
        self._note(entry.identity, LoadStage.CHECKING, 0.0)
        # Images of the model that came last begin first, which makes it busy: else two models that find no room
        # beside each other would swap without either making a picture.
        await asyncio.sleep(0)
        beside = frozenset(busy())
        try:
            await self._visits(partial(engine.make_room, entry, beside), LOAD_SECONDS)
            parked = entry.identity in self._visits.state.parked
            family = None if parked else await self._loader(engine.read, entry, progress)
            beside = frozenset(busy())
            alive = self._visits.with_heartbeat(progress)
            await self._visits(partial(engine.place, entry, family, beside, alive), LOAD_SECONDS)
            del family  # this frame would keep its weights alive
            await self._measure(entry)
        except NoRoom as error:
            log.info("%s It waits until they are done.", error)
            self._apart[entry.identity, beside] = monotonic() + APART_SECONDS
            self._tell(entry.identity)
        except NotRead:
            pass  # it was parked, and had to go meanwhile: the next turn reads it
        except Exception as error:
            self._settle(entry.identity, error)
            raise
        else:
            self.used(entry.identity)
            self._settle(entry.identity)
            self._took[entry.identity, parked] = monotonic() - began
            self._books.meter.loaded(entry.name, parked, monotonic() - began)
        finally:
            self.loading = None

    async def _measure(self, entry: ModelEntry) -> None:
        """Learn what a model's work costs here; where that fails, its first steps teach it."""
        self._note(entry.identity, LoadStage.MEASURING, 0.0)
        try:
            profile, _ = await self._visits(partial(self._visits.engine.measure, entry), LOAD_SECONDS)
        except (DeviceLost, NotRead):
            raise
        except Exception as error:
            log.warning("model %s could not be measured (%s); its steps will tell", entry.name, error)
        else:
            self._books.measured(entry.identity, profile)

    def give_up(self) -> None:
        """Nothing is loaded any more: whoever wants a model ahead hears so."""
        for _, future in self._wanted.values():
            future.cancel()

    async def unload_one(self, needed: Collection[str]) -> bool:
        """Let one model go that is no longer offered or that nobody used for long; never one that is needed."""
        stale = self._stale(needed)
        if stale is None:
            return False
        try:
            await self._visits(partial(self._visits.engine.unload, stale), ODD_SECONDS)
        except DeviceLost:
            raise
        except Exception:
            log.exception("model %s could not be unloaded; that is tried again", name_of(stale))
            return False
        log.info("unloaded model %s", name_of(stale))
        return True

    def _settle(self, identity: str, error: Exception | None = None) -> None:
        """Whoever wanted a model ahead has it, or never will."""
        self._tell(identity, error)
        self._wanted.pop(identity, None)

    def _tell(self, identity: str, error: Exception | None = None) -> None:
        """Tell whoever wanted a model ahead what came of it so far."""
        _, future = self._wanted.get(identity, (None, None))
        if future is not None and not future.done():
            future.set_result(None) if error is None else future.set_exception(error)

    def _stale(self, needed: Collection[str]) -> str | None:
        state = self._visits.state
        kept = {*needed, *self._wanted}
        free = [model for model in (*state.resident, *state.parked) if model not in kept]
        since = monotonic() - self._idle_seconds
        idle = [model for model in free if self._idle_seconds and self._used.get(model, since) < since]
        return next((model for model in (*free, *idle) if model in self._retired or model in idle), None)

    def _teller(self, entry: ModelEntry) -> Progress:
        """What the other threads tell of a load's progress."""
        loop = asyncio.get_running_loop()

        def tell(stage: LoadStage, share: float) -> None:
            loop.call_soon_threadsafe(self._note, entry.identity, stage, share)

        return tell

    def _note(self, identity: str, stage: LoadStage, share: float) -> None:
        since = self.loading.since if self.loading is not None else monotonic()
        self.loading = Loading(identity, stage, share, since)
