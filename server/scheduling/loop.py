"""The scheduler: workers on the event loop that load models and begin, step and decode images through the GPU thread.

    waiting --(encode, begin)--> running --(step, step, step)--> finished --(decode)--> picture

Each worker does one turn at a time and awaits it; the GPU thread takes their calls in the order asked. So a new
image's encoding runs between two steps, and so does a decode, while the step loop never waits for either's result.
A model's files are read on the loader thread, while other models' steps go on. The engine's state is read on the GPU
thread alone: each visit there reports it.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from time import monotonic
from typing import Any

from pipelines.catalog import ModelEntry, name_of
from pipelines.errors import DeviceLost, PipelineError
from pipelines.request import BatchKey, ImageRequest
from server.gpu import WorkerThread
from server.scheduling import policy
from server.scheduling.books import Books
from server.scheduling.meter import Meter
from server.scheduling.models import Models
from server.scheduling.outlook import Outlook
from server.scheduling.previews import Previews
from server.scheduling.queue import ASKED, ORDINARY, Line, Picture, QueueFull, Stage, Submission, Ticket
from server.scheduling.verbs import EngineVerbs, Visits, prepare
from server.scheduling.workers import Worker

log = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 5.0
"""How often the scheduler looks for models to unload that nobody's coming or going brings to its mind."""


class Scheduler:
    """Owns every decision about which image computes when. Call it from the event loop only.

    Args:
        gpu: the thread that owns every tensor.
        loader: the thread that reads models' files.
        max_rows: of a forward pass, unless the engine finds that it has memory for fewer.
        queue_limit, queue_seconds: see `Outlook`.
        idle_seconds: see `Models`.
    """

    def __init__(
        self,
        engine: EngineVerbs,
        gpu: WorkerThread,
        loader: WorkerThread,
        *,
        max_rows: int,
        queue_limit: int,
        queue_seconds: float = float("inf"),
        idle_seconds: float = 0,
        meter: Meter | None = None,
    ) -> None:
        self.books = Books(meter or Meter())
        self.visits = Visits(engine, gpu, self.books.meter)
        self.models = Models(self.visits, loader, self.books, idle_seconds)
        self.previews = Previews(self.visits)
        self.outlook = Outlook(
            self.books, self.cap, self.models.seconds_to_come, queue_limit=queue_limit, queue_seconds=queue_seconds
        )
        self._engine = engine
        self._max_rows = max_rows
        self.line = Line()
        self._orders = count()
        self.pauses = set[str]()  # why no image is begun, in words
        self._loads = Worker(self._load_some, every=HOUSEKEEPING_SECONDS)
        self._begins = Worker(self._begin_some, every=policy.LOOK_SECONDS)
        self._steps = Worker(self._step_some)
        self._decodes = Worker(self._decode_some)

    @property
    def resident(self) -> list[str]:
        """The names of the models on the device."""
        return [name_of(identity) for identity in self.models.resident]

    @property
    def depth(self) -> int:
        """Images that wait or run."""
        return len(self.line.tickets)

    def cap(self, key: BatchKey) -> int:
        """The most rows a forward pass of this key may have."""
        return min(self._max_rows, self.visits.state.row_caps.get(key.shared, self._max_rows))

    @contextmanager
    def reserve(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> Iterator[None]:
        """Keep room for these images until they are submitted. Raises QueueFull."""
        work = self.outlook.work(entry, requests)
        try:
            with self.outlook.reserve(self.line.tickets, len(requests), work):
                yield
        except QueueFull:
            self.books.meter.refused()
            raise

    def submit(
        self,
        entry: ModelEntry,
        request: ImageRequest,
        wanted: Submission = ORDINARY,
        watch: Callable[[Ticket], None] = lambda ticket: None,
    ) -> Ticket:
        """Queue one image. Whether there is room for it is `reserve`'s to say."""
        future: asyncio.Future[Picture] = asyncio.get_running_loop().create_future()
        entered = self.books.clock.enter(wanted.tenant)
        ticket = Ticket(entry, request, wanted, next(self._orders), future, watch, self.books.clock, entered)
        ticket.solo = self.books.solo_seconds(ticket)
        self.line.add(ticket)
        future.add_done_callback(lambda _: self._ended(ticket))
        self._wake_all()
        return ticket

    def change(self, ticket: Ticket, wanted: Submission) -> None:
        """Ask something else for an image that is in line, as its priority."""
        ticket.wanted = wanted
        self._wake_all()

    def pause(self, paused: bool, cause: str = ASKED) -> None:
        """Begin no more images, or begin them again when no other cause is left; those begun go on."""
        (self.pauses.add if paused else self.pauses.discard)(cause)
        self._wake_all()

    async def load(self, entry: ModelEntry) -> None:
        """Load a model before anybody asks for it; returns early where it must wait for room beside busy ones.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        there = self.models.want(entry)
        self._loads.wake()
        await asyncio.shield(there)

    def retire(self, identities: Collection[str]) -> None:
        """Name the models that are offered no longer, all of them: each leaves the device once it is idle."""
        self.models.retire(identities)
        self._loads.wake()

    async def run(self) -> None:
        """Work until cancelled; then whoever still waits is told so.

        Raises:
            DeviceLost: and with it every image failed.
        """
        try:
            async with asyncio.TaskGroup() as workers:
                for worker in (self._loads, self._begins, self._steps, self._decodes):
                    workers.create_task(worker.run())
        except ExceptionGroup as group:
            lost = next((error for error in group.exceptions if isinstance(error, DeviceLost)), None)
            if lost is None:
                raise
            for ticket in self.line.tickets:
                ticket.fail(lost)
            raise lost from None
        finally:
            self.models.give_up()
            for ticket in self.line.tickets:
                ticket.future.cancel()

    async def _load_some(self) -> bool:
        """Unload what is no longer wanted, or load the model of the foremost image that lacks one."""
        if await self.models.unload_one(self.line.needed):
            return True
        if (entry := self.models.next(self.line.in_turn, self.line.busy)) is None:
            return False
        try:
            await self.models.bring(entry, lambda: self.line.busy)
        except DeviceLost:
            raise
        except Exception as error:
            self._fail(self.line.waiting_for(entry), error)
        for ticket in self.line.waiting_for(entry):  # now that it is known what the model's work costs
            ticket.solo = self.books.solo_seconds(ticket)
        self._wake_all()
        return True

    async def _begin_some(self) -> bool:
        """Encode prompts and draw the noise of the images next in line."""
        if self.pauses or not (waiting := self.line.in_turn):
            return False
        ready = [ticket for ticket in waiting if ticket.key.model in self.models.resident]
        ready = policy.not_held(ready, waiting, partial(self.models.crowding, busy=self.line.busy))
        begun = self.line.at(Stage.ENCODING, Stage.DENOISING)
        batch = policy.admit(ready, begun, self.books.cost, self.cap, self._max_rows)
        if not batch:
            return False
        entry = batch[0].entry
        for ticket in batch:
            ticket.stage = Stage.ENCODING
            if ticket.started is None:
                ticket.started = monotonic()
                self.books.meter.waited(ticket.priority, ticket.started - ticket.submitted)
        work = partial(prepare, self._engine, entry, [ticket.request for ticket in batch])
        with self._failing(batch):
            outcomes, seconds = await self.visits(work, self.books.cost.expected_encode(entry.identity, len(batch)))
            if outcomes is None:
                for ticket in batch:
                    ticket.stage = Stage.WAITING
                self._loads.wake()
                return True
            self.books.encoded(batch[0].key, len(batch), seconds)
            for ticket, outcome in zip(batch, outcomes, strict=True):
                self._begun(ticket, outcome)
        return True

    def _begun(self, ticket: Ticket, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            self._fail([ticket], outcome)
        elif ticket.live:
            ticket.denoising = outcome
            ticket.note()
            ticket.stage = Stage.DENOISING
            self._steps.wake()
            ticket.watch(ticket)

    async def _step_some(self) -> bool:
        """One forward pass for the batch of the highest value."""
        batch = policy.ride(self.line.at(Stage.DENOISING), self.books.cost, self.cap, self.depth)
        if not batch:
            return False
        key, rows = batch[0].key, sum(ticket.rows for ticket in batch)
        work = partial(self._engine.step, batch[0].entry, [ticket.denoising for ticket in batch])
        with self._failing(batch):
            splits = self.visits.state.counts.splits
            outcomes, seconds = await self.visits(work, self.books.cost.expected_step(key, rows))
            usual = not any(outcomes) and self.visits.state.counts.splits == splits
            self.books.stepped(key, len(batch), rows, seconds, usual=usual)
            for ticket, failure in zip(batch, outcomes, strict=True):
                self._stepped(ticket, failure)
        return True

    def _stepped(self, ticket: Ticket, failure: Exception | None) -> None:
        if failure is not None:
            self._fail([ticket], failure)
        elif ticket.live:
            rows = ticket.rows
            ticket.note()
            if not ticket.evaluations_left:
                ticket.stage = Stage.DECODING
                self._decodes.wake()
            if not ticket.evaluations_left or ticket.rows < rows:
                self._begins.wake()
            ticket.watch(ticket)

    async def _decode_some(self) -> bool:
        """Turn finished latents into pictures, several at once."""
        if not (batch := policy.decode(self.line.at(Stage.DECODING))):
            return False
        with self._failing(batch):
            images = [ticket.denoising for ticket in batch]
            expected = self.books.cost.expected_decode(batch[0].key, len(batch))
            decoded, seconds = await self.visits(partial(self._engine.finish, batch[0].entry, images), expected)
            self.books.decoded(batch[0].key, len(batch), seconds)
            for ticket, result in zip(batch, decoded, strict=True):
                if isinstance(result, Exception):
                    self._fail([ticket], result)
                elif ticket.live:
                    ticket.future.set_result(ticket.picture(result))
        return True

    def _ended(self, ticket: Ticket) -> None:
        """A ticket's future is done, by whichever way: the next in line may have its rows."""
        self.line.remove(ticket)
        self.models.used(ticket.key.model)
        self.books.clock.leave(ticket.tenant)
        ticket.denoising = None
        self._wake_all()
        ticket.watch(ticket)

    def _wake_all(self) -> None:
        """Somebody came or went: there may be something to load or to begin."""
        self._loads.wake()
        self._begins.wake()

    @contextmanager
    def _failing(self, batch: Sequence[Ticket]) -> Iterator[None]:
        """An unforeseen error in here ends these tickets, not the scheduler."""
        try:
            yield
        except DeviceLost:
            raise  # everybody's end, not these tickets' alone
        except Exception as error:
            self._fail(batch, error)

    def _fail(self, batch: Sequence[Ticket], error: Exception) -> None:
        if batch:  # a foreseen error explains itself; another needs its traceback
            unforeseen = None if isinstance(error, PipelineError) else error
            log.error("%d images failed: %s", len(batch), error, exc_info=unforeseen)
        for ticket in [ticket for ticket in batch if ticket.live]:
            self.books.meter.failed(type(error).__name__)
            ticket.fail(error)
