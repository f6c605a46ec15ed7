"""Carrying a job out: from its row to pictures on disk and rows that say so, in as many attempts as it is allowed."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

from pipelines.errors import CheckpointError, DeviceLost
from server.answers import explain, public
from server.disconnect import ClientGone
from server.endings import ImageEnd, error_code
from server.errors import Cancelled, EngineLost, Interrupted
from server.jobs.backoff import BACKOFF_SECONDS, MOST_BACKOFF_SECONDS, backoff, passes, spends
from server.jobs.keeping import Kept, discard, keep
from server.jobs.orders import Order
from server.scheduling.loop import Scheduler
from server.scheduling.policy import Turn
from server.scheduling.queue import Stage, Submission, Ticket
from server.weights import WeightHashes
from storage.errors import DatabaseBusy, DiskFull, IllegalTransition
from storage.files import MediaFiles
from storage.jobs import JobStore
from storage.records import JobRecord, JobStatus, NewImage

log = logging.getLogger(__name__)

KEEPING_WEIGHT = 0.2
"""Of the newest job in the mean of how long keeping takes."""


@dataclass(eq=False)
class Run:
    """One job under way. Its task is never cancelled, since a file or a row may be half-way; its tickets are.

    Attributes:
        waiting: how many clients wait for its end.
        promised: seconds that its pictures were expected to take when they were put in line.
        began: when it was accepted, by the monotonic clock.
        images: what came of each image so far.
        at_once: how many of its owner's jobs may be at work together with it, itself included; 0 for any number.
    """

    order: Order
    job: JobRecord
    tickets: list[Ticket] = field(default_factory=list)
    waiting: int = 0
    promised: float = 0.0
    began: float = field(default_factory=monotonic)
    images: list[ImageEnd] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: Exception | None = None
    at_once: int = 0

    def stop(self, reason: Exception) -> None:
        """Make no more pictures; their rows are free by the next step. The first reason stays."""
        self.stopped = self.stopped or reason
        for ticket in self.tickets:
            ticket.future.cancel()
        self.begun.set()
        self.stopping.set()

    @property
    def at_work(self) -> bool:
        """Whether the device was at any of its images in this attempt."""
        return any(ticket.stage is not Stage.WAITING for ticket in self.tickets)

    @property
    def submission(self) -> Submission:
        """What is asked of the scheduler for each of its images."""
        return Submission(
            priority=self.job.priority,
            owner=self.order.owner_id,
            deadline=self.order.deadline,
            user=self.order.user or "",
            ahead=self.job.moved_at is not None,
            turn=Turn(self.order.owner_id, self.job.id, self.at_once) if self.at_once else None,
        )


class Runner:
    """Carries runs out; it knows nothing of who waits for them.

    Args:
        changed: called on the event loop whenever something about a run can be told.
    """

    def __init__(
        self,
        store: JobStore,
        files: MediaFiles,
        scheduler: Scheduler,
        weights: WeightHashes,
        boot_id: str,
        changed: Callable[[Run], None],
    ) -> None:
        self.broken: set[str] = set()
        """The identities of the models that could not be loaded when they were last wanted."""
        self._store = store
        self._files = files
        self._scheduler = scheduler
        self._weights = weights
        self._boot_id = boot_id
        self._changed = changed
        self._keeping = 0.0  # seconds from a job's last picture to its end, of late

    def line_up(self, run: Run) -> None:
        """Put a run's images in line."""
        run.tickets = [
            self._scheduler.submit(run.order.entry, request, run.submission, lambda _: self._moved(run))
            for request in run.order.requests
        ]

    def promise(self, run: Run) -> None:
        """Take down how long its pictures may be expected to take, as things stand."""
        line = self._scheduler.line.tickets
        run.promised = self._scheduler.outlook.end_of(run.tickets, line) + self._keeping

    async def carry_out(self, run: Run) -> JobRecord:
        """Bring a job to its end, whatever it takes; its row as it is then.

        Raises:
            EngineLost: the next run of the server carries it out.
            PipelineError, StorageError: the first image's failure, when no image could be made.
        """
        while True:
            await self._until_due(run)
            made = await self._make(run)
            try:
                if run.stopped is not None:
                    raise run.stopped
                return await self._complete(run, made)
            except Exception as caught:
                # A row that cannot be completed because somebody cancelled the job meanwhile is no fault of its own.
                error = run.stopped if run.stopped is not None and isinstance(caught, IllegalTransition) else caught
                heard = await self._end(run, error, [kept.image for kept in made if isinstance(kept, Kept)])
                if heard is caught:
                    raise
                if heard is not None:
                    raise heard from caught

    async def refuse(self, job: JobRecord, error: Exception) -> JobRecord:
        """Fail a job that will not be carried out."""
        answer, message = explain(error)
        return await self._store.fail(job.id, answer.code, message)

    def _moved(self, run: Run) -> None:
        run.begun.set()
        self._changed(run)

    async def _until_due(self, run: Run) -> None:
        """Wait for the time before which a job is not tried again."""
        if run.job.due_at is not None and run.stopped is None:
            seconds = (run.job.due_at - datetime.now(UTC)).total_seconds()
            await _first(run.stopping, min(seconds, MOST_BACKOFF_SECONDS))  # the clock may have been set back

    async def _make(self, run: Run) -> list[Kept | BaseException]:
        """In each image's place its picture, or why there is none."""
        if run.stopped is not None:
            return []
        if not run.tickets:
            self.line_up(run)
        run.images = []
        keeping = [asyncio.create_task(self._keep(run, index, ticket)) for index, ticket in enumerate(run.tickets)]
        try:
            await run.begun.wait()
            if run.stopped is None:
                run.job = await self._store.start(run.job.id, self._boot_id)
                self._changed(run)
        except Exception as error:
            for ticket in run.tickets:
                ticket.future.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
            return [error]
        return await asyncio.gather(*keeping, return_exceptions=True)

    async def _keep(self, run: Run, index: int, ticket: Ticket) -> Kept:
        """Wait for one picture and put its files on disk."""
        order = run.order
        try:
            picture = await ticket.future
            self.broken.discard(order.entry.identity)
            weights = await self._weights.of(order.entry)
            kept = await asyncio.to_thread(keep, self._files, order, index, ticket.request, picture, weights)
        except BaseException as error:
            if isinstance(error, CheckpointError):
                self.broken.add(order.entry.identity)
            run.images.append(ImageEnd(index, ticket, error_code(error, order)))
            raise
        run.images.append(ImageEnd(index, ticket))
        return kept

    async def _complete(self, run: Run, made: Sequence[Kept | BaseException]) -> JobRecord:
        """Write the rows of the pictures and the job's end; the first failure if there is no picture."""
        # One image fails alone; without a device, or without room when nobody waits, the whole job is done again.
        everybody = (DeviceLost,) if run.job.attached else (DeviceLost, DiskFull)
        if error := next((one for one in made if isinstance(one, everybody)), None):
            raise error
        kept = [one for one in made if isinstance(one, Kept)]
        failures = {
            index: public(one, run.order.entry.name) for index, one in enumerate(made) if isinstance(one, BaseException)
        }
        if not kept:
            raise failures[0]
        for index, failure in failures.items():
            if not run.tickets[index].failed:  # else the scheduler has told it
                log.warning("image %d of job %s failed", index, run.job.id, exc_info=failure)
        reasons = {str(index): explain(failure)[1] for index, failure in failures.items()}
        ended = await self._store.complete(
            run.job.id,
            self._boot_id,
            [one.image for one in kept],
            error_code="partly_failed" if failures else None,
            error_message="; ".join(f"image {index}: {reason}" for index, reason in reasons.items()) or None,
            outcome=self._outcome(run, kept) | {"failures": reasons},
        )
        took = monotonic() - max(one.picture.finished for one in kept)
        self._keeping += KEEPING_WEIGHT * (took - self._keeping)
        return ended

    def _outcome(self, run: Run, kept: Sequence[Kept]) -> dict[str, Any]:
        first = kept[0].picture
        return {
            "seconds": max(one.picture.seconds for one in kept),
            "promised": run.promised,
            "prompt": asdict(first.prompt),
            "negative_prompt": asdict(first.negative_prompt),
        }

    async def _end(self, run: Run, error: Exception, images: Sequence[NewImage]) -> Exception | None:
        """End an attempt without pictures; what whoever waits is told, or None if the job is tried again.

        Its row first: files may go once it is sure that no row names them.
        """
        heard: Exception | None = error
        try:
            heard = await self._settle(run, error)
            for image in images:
                await asyncio.to_thread(discard, self._files, image)
        except IllegalTransition as ended:
            log.warning("%s Its files stay.", ended)
        except Exception:
            log.exception("job %s could not be ended; the next start of the server ends it", run.job.id)
        return heard

    async def _settle(self, run: Run, error: Exception) -> Exception | None:
        """What becomes of a job's row by an error, and what is heard of it."""
        if isinstance(error, Cancelled):
            return error  # its row says so already
        if isinstance(error, ClientGone):
            await self._store.cancel(run.job.owner_id, run.job.id)
        elif isinstance(error, DeviceLost) or (isinstance(error, Interrupted) and not run.job.attached):
            return await self._requeue(run, error)
        elif not run.job.attached and passes(run.job, error):
            await self._postpone(run, error)
            return None
        else:
            await self.refuse(run.job, error)
        return error

    async def _requeue(self, run: Run, error: Exception) -> Exception:
        """Leave a job to the next run of the server, as its client was or will be told.

        Of one that only waited its row says so already: a stop with thousands in line writes none of them.
        """
        if isinstance(error, Interrupted) and run.job.status is JobStatus.PENDING:
            return EngineLost(run.job.id)
        left = await self._store.requeue(run.job.id, str(error), lost=isinstance(error, DeviceLost))
        log.warning("job %s is %s: %s", left.id, left.status, left.error_message)
        return EngineLost(left.id) if left.status is JobStatus.PENDING else error

    async def _postpone(self, run: Run, error: Exception) -> None:
        """Let a job wait for its next attempt; as long as the database refuses to say so, that is asked again."""
        answer, message = explain(error)
        pause, spent = backoff(run.job, error), spends(error)
        while True:
            due = datetime.now(UTC) + timedelta(seconds=pause)
            try:
                run.job = await self._store.postpone(run.job.id, due, answer.code, message, spent=spent)
                break
            except (DatabaseBusy, DiskFull):
                if await _first(run.stopping, BACKOFF_SECONDS):
                    raise
        log.warning("job %s failed and is tried again in %.0f s: %s", run.job.id, pause, error)
        run.tickets = []
        run.begun = asyncio.Event()
        self._changed(run)


async def _first(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but not for longer; whether it came."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    return event.is_set()
