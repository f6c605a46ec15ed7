"""The scheduler: three workers on the event loop that begin, step and decode images through the GPU thread.

    waiting --(encode, begin)--> running --(step, step, step)--> finished --(decode)--> picture

Each worker does one turn at a time and awaits it; the GPU thread takes their calls in the order asked. So a new
image's encoding runs between two steps, and so does a decode, while the step loop never waits for either's result.
The engine's state is read on the GPU thread alone: each visit there reports what is loaded after it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from math import ceil
from time import monotonic
from typing import Any, TypeVar

from pipelines.catalog import ModelEntry
from pipelines.errors import NoRoom, PipelineError
from pipelines.request import BatchKey, ImageRequest
from pipelines.state import EngineState
from server.gpu import GpuThread
from server.scheduling import policy
from server.scheduling.cost import CostModel
from server.scheduling.queue import Picture, QueueFull, Stage, Ticket
from server.scheduling.verbs import EngineVerbs, visited

log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_RETRY_AFTER = 120
"""Seconds; OpenAI's clients do not heed a longer Retry-After."""


class Scheduler:
    """Owns every decision about which image computes when. Call it from the event loop only."""

    def __init__(self, engine: EngineVerbs, gpu: GpuThread, *, max_rows: int, queue_limit: int) -> None:
        self.cost = CostModel()
        self.state = EngineState()
        """The engine's, when the GPU thread last reported."""
        self._engine = engine
        self._gpu = gpu
        self._max_rows = max_rows
        self._queue_limit = queue_limit
        self._tickets: list[Ticket] = []
        self._orders = count()
        self._turns = count(1)
        self._served: dict[BatchKey, int] = {}
        self._apart = set[tuple[str, frozenset[str]]]()  # a model that did not fit beside others, and those others
        self._wake = {stage: asyncio.Event() for stage in Stage}

    @property
    def resident(self) -> list[str]:
        """The names of the models on the device."""
        return [identity.partition("@")[0] for identity in self.state.resident]

    @property
    def depth(self) -> int:
        """Images that wait or run."""
        return len(self._live())

    @property
    def retry_after(self) -> int:
        """Whole seconds until about half of the queue is done, 1 to MAX_RETRY_AFTER."""
        return max(1, min(MAX_RETRY_AFTER, ceil(self.cost.seconds_left(self._live()) / 2)))

    def check_room(self, images: int) -> None:
        """Raise QueueFull unless so many more images may be submitted."""
        if self.depth + images > self._queue_limit:
            raise QueueFull(self._queue_limit, self.retry_after)

    def submit(
        self,
        entry: ModelEntry,
        request: ImageRequest,
        priority: int = 0,
        watch: Callable[[Ticket], None] = lambda ticket: None,
    ) -> Ticket:
        """Queue one image; a higher priority goes first.

        Raises:
            QueueFull: as many images wait or run as allowed.
        """
        self.check_room(1)
        future: asyncio.Future[Picture] = asyncio.get_running_loop().create_future()
        ticket = Ticket(entry, request, priority, next(self._orders), future, watch)
        future.add_done_callback(lambda _: self._ended(ticket))
        self._tickets.append(ticket)
        self._wake[Stage.WAITING].set()
        return ticket

    async def load(self, entry: ModelEntry) -> None:
        """Load a model before anybody asks for it; where the busy ones leave no room, nothing is done before then.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        with suppress(NoRoom):
            await self._visit(partial(self._engine.load, entry, self._busy()))

    async def run(self) -> None:
        """Work until cancelled; then whoever still waits is told so."""
        try:
            async with asyncio.TaskGroup() as workers:
                workers.create_task(self._work(Stage.WAITING, self._begin_some))
                workers.create_task(self._work(Stage.DENOISING, self._step_some))
                workers.create_task(self._work(Stage.DECODING, self._decode_some))
        finally:
            for ticket in self._live():
                ticket.future.cancel()

    async def _work(self, stage: Stage, turn: Callable[[], Awaitable[bool]]) -> None:
        """Take turns while there is something to do, then sleep until there may be again."""
        while True:
            await self._wake[stage].wait()
            self._wake[stage].clear()
            while await turn():
                pass

    async def _begin_some(self) -> bool:
        """Load the model, encode prompts and draw the noise of the images next in line."""
        busy = self._busy()
        batch = policy.admit(
            self._at(Stage.WAITING),
            self._at(Stage.ENCODING, Stage.DENOISING),
            max_rows=self._max_rows,
            resident=self.state.resident,
            busy=busy,
            crowded_out=self._crowded_out(busy),
        )
        if not batch:
            return False
        entry = batch[0].entry
        for ticket in batch:
            ticket.stage = Stage.ENCODING
            ticket.started = monotonic()
        with _failing(batch):
            if entry.identity not in self.state.resident:
                log.info("loading model %s", entry.name)
            requests = [ticket.request for ticket in batch]
            try:
                begun, _ = await self._visit(partial(_prepare, self._engine, entry, requests, busy))
            except NoRoom as error:
                log.info("%s It waits until they are done.", error)
                self._apart.add((entry.identity, frozenset(busy)))
                for ticket in batch:
                    ticket.stage = Stage.WAITING
            else:
                for ticket, outcome in zip(batch, begun, strict=True):
                    self._begun(ticket, outcome)
        return True

    def _begun(self, ticket: Ticket, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            ticket.fail(outcome)
        elif ticket.live:
            ticket.denoising = outcome
            ticket.stage = Stage.DENOISING
            self._wake[Stage.DENOISING].set()
            ticket.watch(ticket)

    async def _step_some(self) -> bool:
        """One forward pass for the batch whose turn it is."""
        running = self._at(Stage.DENOISING)
        # A key that appears joins at the end of the round.
        self._served = {ticket.key: self._served.get(ticket.key) or next(self._turns) for ticket in running}
        batch = policy.ride(running, self._served, self._max_rows)
        if not batch:
            return False
        key = batch[0].key
        self._served[key] = next(self._turns)
        images, rows = [ticket.denoising for ticket in batch], sum(ticket.rows for ticket in batch)
        with _failing(batch):
            outcomes, seconds = await self._visit(partial(self._engine.step, batch[0].entry, images))
            self.cost.observe(key, rows, seconds)
            for ticket, failure in zip(batch, outcomes, strict=True):
                self._stepped(ticket, failure)
        return True

    def _stepped(self, ticket: Ticket, failure: Exception | None) -> None:
        if failure is not None:
            ticket.fail(failure)
        elif ticket.live:
            if ticket.denoising.finished:
                ticket.stage = Stage.DECODING
                self._wake[Stage.DECODING].set()
                self._wake[Stage.WAITING].set()
            ticket.watch(ticket)

    async def _decode_some(self) -> bool:
        """Turn finished latents into pictures, several at once."""
        batch = policy.decode(self._at(Stage.DECODING))
        if not batch:
            return False
        with _failing(batch):
            images = [ticket.denoising for ticket in batch]
            decoded, _ = await self._visit(partial(self._engine.finish, batch[0].entry, images))
            for ticket, result in zip(batch, decoded, strict=True):
                if isinstance(result, Exception):
                    ticket.fail(result)
                elif ticket.live:
                    ticket.future.set_result(_picture(ticket, result))
        return True

    def _ended(self, ticket: Ticket) -> None:
        """A ticket's future is done, by whichever way: forget it, and let the next in line have its rows."""
        with suppress(ValueError):
            self._tickets.remove(ticket)
        ticket.denoising = None
        self._wake[Stage.WAITING].set()
        ticket.watch(ticket)

    async def _visit(self, work: Callable[[], T]) -> tuple[T, float]:
        """Have the GPU thread do some work and note which models are loaded after it; its result and its seconds."""
        visit = await self._gpu(visited, self._engine, work)
        self.state = visit.state
        return visit.result, visit.seconds

    def _busy(self) -> set[str]:
        """The models with images in flight: loaded, or about to be."""
        return {ticket.key.model for ticket in self._live() if ticket.stage is not Stage.WAITING}

    def _crowded_out(self, busy: Collection[str]) -> set[str]:
        """The models wanted for which there is no room while the busy ones stay."""
        wanted = {ticket.key.model for ticket in self._at(Stage.WAITING)}
        return {model for model, others in self._apart if model in wanted and others.issubset(busy)}

    def _live(self) -> list[Ticket]:
        return [ticket for ticket in self._tickets if ticket.live]

    def _at(self, *stages: Stage) -> list[Ticket]:
        return [ticket for ticket in self._live() if ticket.stage in stages]


def _prepare(engine: EngineVerbs, entry: ModelEntry, requests: Sequence[ImageRequest], busy: set[str]) -> list[Any]:
    """Everything before an image's first step, in one visit to the GPU thread, so that it waits for one step only."""
    engine.load(entry, busy)
    return engine.begin(entry, requests, engine.encode(entry, requests))


def _picture(ticket: Ticket, image: Any) -> Picture:
    text = ticket.denoising.conditioning
    return Picture(image, monotonic() - (ticket.started or ticket.submitted), text.prompt, text.negative_prompt)


@contextmanager
def _failing(batch: Sequence[Ticket]) -> Iterator[None]:
    """An unforeseen error in here ends these tickets, not the scheduler."""
    try:
        yield
    except Exception as error:
        # A foreseen error explains itself; another needs its traceback.
        log.error("%d images failed: %s", len(batch), error, exc_info=not isinstance(error, PipelineError))
        for ticket in batch:
            ticket.fail(error)
