"""Jobs: from a settled order to pictures on disk and rows that say so. Durable before it is computed."""

import asyncio
import logging
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from uuid import uuid4

from pipelines.errors import CheckpointError, DeviceLost
from pipelines.request import TokenCount
from server.disconnect import ClientGone
from server.endings import ImageEnd, JobEnd, Listener, error_code
from server.errors import EngineLost, Interrupted, explain, public
from server.keeping import Kept, discard, keep
from server.orders import Order, to_job
from server.scheduling.loop import Scheduler
from server.scheduling.outlook import Reserved
from server.scheduling.queue import Submission, Ticket
from server.weights import WeightHashes
from storage.database import Database
from storage.errors import IllegalTransition
from storage.files import MediaFiles
from storage.images import ImageStore
from storage.jobs import JobStore
from storage.records import ENGINE_LOST, ImageRecord, JobRecord, JobStatus, NewImage

log = logging.getLogger(__name__)

KEEPING_WEIGHT = 0.2
"""Of the newest job in the mean of how long keeping takes."""


@dataclass(frozen=True)
class Result:
    """A job's end: the images made, why others were not, and (`promised`) how many seconds it was expected to take."""

    job: JobRecord
    images: Sequence[ImageRecord]
    failures: dict[int, str]
    seconds: float
    promised: float
    prompt: TokenCount
    negative_prompt: TokenCount


@dataclass(eq=False)
class _Run:
    """One order under way. Its task is never cancelled, since a file or a row may be half-way; its tickets are."""

    order: Order
    work: float
    """Seconds of the device, as reckoned when it was accepted."""
    job: JobRecord | None = None
    began: float = field(default_factory=monotonic)
    tickets: list[Ticket] = field(default_factory=list)
    images: list[ImageEnd] = field(default_factory=list)
    promised: float = 0.0
    """Seconds that its pictures were expected to take when they were put in line."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: Exception | None = None

    def stop(self, reason: Exception) -> None:
        """Make no more pictures; their rows are free by the next step. The first reason stays."""
        self.stopped = self.stopped or reason
        for ticket in self.tickets:
            ticket.future.cancel()
        self.begun.set()


class Jobs:
    """Runs orders. One instance a server; `boot_id` tells its work from that of a run before it.

    `broken` has the identities of the models that could not be loaded when they were last wanted. The listeners hear of
    each job once it has ended, on the event loop.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        scheduler: Scheduler,
        weights: WeightHashes,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.boot_id = str(uuid4())
        self.images = ImageStore(database)
        self.files = MediaFiles(folder)
        self.broken: set[str] = set()
        self._jobs = JobStore(database)
        self._scheduler = scheduler
        self._weights = weights
        self._listeners = listeners
        self._under_way: dict[asyncio.Task[Result], _Run] = {}
        self._reserved = Reserved()
        self._keeping = 0.0  # seconds from a job's last picture to its end, of late
        self._closed = False

    async def recover(self) -> None:
        """End what a run before this one left open: whoever waited for it is gone with that run.

        But for what it left to this one: see `lost`.
        """
        await self._jobs.recover(self.boot_id)
        for job in await self._jobs.pending():
            if job.error_code != ENGINE_LOST:
                await self.refuse(job, Interrupted())
        swept = await self.files.sweep(self.images.known_ids)
        log.info("swept %s", swept)

    async def lost(self) -> list[JobRecord]:
        """The jobs that wait since an earlier run lost its engine, in the order in which they are due."""
        return [job for job in await self._jobs.pending() if job.error_code == ENGINE_LOST]

    async def refuse(self, job: JobRecord, error: Exception) -> None:
        """Fail a job that will not be carried out."""
        answer, message = explain(error)
        await self._jobs.fail(job.id, answer.code, message)

    async def run(self, order: Order, job: JobRecord | None = None) -> Result:
        """Carry an order out; if the caller is cancelled, so is the job, and its rows are free by the next step.

        Args:
            job: its row, where it has one already.

        Raises:
            QueueFull, Interrupted: before anything was written.
            EngineLost: the next run of the server carries it out.
            PipelineError, StorageError: the first image's failure, when no image could be made.
        """
        if self._closed:
            raise Interrupted
        self._scheduler.check_room(order.entry, order.requests, self._reserved)
        self._reserved.images += len(order.requests)
        work = self._scheduler.outlook.work(order.entry, order.requests)
        self._reserved.seconds += work
        run = _Run(order, work, job)
        task = asyncio.create_task(self._carry_out(run))
        self._under_way[task] = run
        self._weights.begin(order.entry, anew=order.entry.identity not in self._scheduler.models.resident)
        task.add_done_callback(self._forget)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            run.stop(ClientGone("The client hung up."))
            raise
        return task.result()

    def stop(self, reason: Exception | None = None) -> None:
        """Take no more orders and end those under way; their waiters hear the reason, else `Interrupted`.

        After DeviceLost they are left to the next run of the server.
        """
        self._closed = True
        self._weights.halt()
        for run in self._under_way.values():
            run.stop(reason or Interrupted())

    async def close(self) -> None:
        """Stop, and wait until every job has its end in the database."""
        self.stop()
        if self._under_way:
            await asyncio.wait(set(self._under_way))

    async def read(self, image: ImageRecord) -> str:
        """An image's file in base64.

        Raises:
            MediaNotFound: it was deleted meanwhile.
        """

        def contents() -> str:
            with self.files.open(image.media_name)[0] as stream:
                return b64encode(stream.read()).decode("ascii")

        return await asyncio.to_thread(contents)

    async def _carry_out(self, run: _Run) -> Result:
        job = await self._accept(run)
        made = await self._make(run, job)
        try:
            if run.stopped is not None:
                raise run.stopped
            return await self._complete(run, job, made)
        except Exception as error:
            heard = await self._end(job, error, [kept.image for kept in made if isinstance(kept, Kept)])
            if heard is error:
                raise
            raise heard from error

    async def _accept(self, run: _Run) -> JobRecord:
        """The job's row, durable, and then its tickets."""
        try:
            run.job = job = run.job or await self._jobs.insert(to_job(run.order))
        finally:
            self._reserved.images -= len(run.order.requests)
            self._reserved.seconds -= run.work
        if run.stopped is None:  # nothing was awaited since, so the room that was reserved is still there
            wanted = Submission(run.order.priority, run.order.owner_id, run.order.deadline, run.order.user or "")
            run.tickets = [
                self._scheduler.submit(run.order.entry, request, wanted, lambda _: run.begun.set())
                for request in run.order.requests
            ]
            run.promised = self._scheduler.outlook.end_of(run.tickets, self._scheduler.line.tickets) + self._keeping
        return job

    async def _make(self, run: _Run, job: JobRecord) -> list[Kept | BaseException]:
        """In each image's place its picture, or why there is none."""
        keeping = [asyncio.create_task(self._keep(run, index, ticket)) for index, ticket in enumerate(run.tickets)]
        try:
            await run.begun.wait()
            if run.stopped is None:
                await self._jobs.start(job.id, self.boot_id)
        except Exception as error:
            run.stop(error)
        return await asyncio.gather(*keeping, return_exceptions=True)

    async def _keep(self, run: _Run, index: int, ticket: Ticket) -> Kept:
        """Wait for one picture and put its files on disk."""
        order = run.order
        try:
            picture = await ticket.future
            self.broken.discard(order.entry.identity)
            weights = await self._weights.of(order.entry)
            kept = await asyncio.to_thread(keep, self.files, order, index, ticket.request, picture, weights)
        except BaseException as error:
            if isinstance(error, CheckpointError):
                self.broken.add(order.entry.identity)
            run.images.append(ImageEnd(index, ticket, error_code(error, order)))
            raise
        run.images.append(ImageEnd(index, ticket))
        return kept

    async def _complete(self, run: _Run, job: JobRecord, made: Sequence[Kept | BaseException]) -> Result:
        """Write the rows of the pictures and the job's end; the first failure if there is no picture."""
        if lost := next((one for one in made if isinstance(one, DeviceLost)), None):
            raise lost  # one image fails alone; without a device the whole job is done again
        kept = [one for one in made if isinstance(one, Kept)]
        failures = {
            index: public(one, run.order.entry.name) for index, one in enumerate(made) if isinstance(one, BaseException)
        }
        if not kept:
            raise failures[0]
        for index, failure in failures.items():
            log.warning("image %d of job %s failed", index, job.id, exc_info=failure)
        reasons = {index: explain(failure)[1] for index, failure in failures.items()}
        ended = await self._jobs.complete(
            job.id,
            self.boot_id,
            [one.image for one in kept],
            error_code="partly_failed" if failures else None,
            error_message="; ".join(f"image {index}: {reason}" for index, reason in reasons.items()) or None,
        )
        images = await self.images.of_job(run.order.owner_id, job.id)
        first = kept[0].picture
        seconds = max(one.picture.seconds for one in kept)
        took = monotonic() - max(one.picture.finished for one in kept)
        self._keeping += KEEPING_WEIGHT * (took - self._keeping)
        return Result(ended, images, reasons, seconds, run.promised, first.prompt, first.negative_prompt)

    async def _end(self, job: JobRecord, error: Exception, images: Sequence[NewImage]) -> Exception:
        """End a job without pictures, and return what its waiter hears.

        Its row first: files may go once it is sure that no row names them.
        """
        try:
            if isinstance(error, ClientGone):
                await self._jobs.cancel(job.owner_id, job.id)
            elif isinstance(error, DeviceLost) or (isinstance(error, Interrupted) and job.error_code == ENGINE_LOST):
                error = await self._requeue(job, error)
            else:
                await self.refuse(job, error)
            for image in images:
                await asyncio.to_thread(discard, self.files, image)
        except IllegalTransition as ended:
            log.warning("%s Its files stay.", ended)
        except Exception:
            log.exception("job %s could not be ended; the next start of the server ends it", job.id)
        return error

    async def _requeue(self, job: JobRecord, error: Exception) -> Exception:
        """Leave a job to the next run of the server, as its client was or will be told."""
        left = await self._jobs.requeue(job.id, str(error), lost=isinstance(error, DeviceLost))
        log.warning("job %s is %s: %s", left.id, left.status, left.error_message)
        return EngineLost(job.id) if left.status is JobStatus.PENDING else error

    def _forget(self, task: "asyncio.Task[Result]") -> None:
        run = self._under_way.pop(task)
        if not task.cancelled():
            error = task.exception()  # retrieved: its waiter may have gone, and then nobody else asks
            kept = 0 if error else len(task.result().images)
            job_id, weights = run.job.id if run.job else None, self._weights.known(run.order.entry)
            job = JobEnd(run.order, job_id, run.began, run.images, kept, weights, error)
            for listener in self._listeners:
                try:
                    listener(job)
                except Exception:
                    log.exception("who is told of each job failed at job %s", job_id)
