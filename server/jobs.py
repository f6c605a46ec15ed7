"""Jobs: from a settled order to pictures on disk and rows that say so. Durable before it is computed."""

import asyncio
import logging
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipelines.catalog import ModelEntry
from pipelines.errors import CheckpointError
from pipelines.infotext import metadata
from pipelines.request import ImageRequest, TokenCount
from server.disconnect import ClientGone
from server.errors import Interrupted, explain, public
from server.scheduling.loop import Scheduler
from server.scheduling.meter import JobEnd
from server.scheduling.queue import Picture, Submission, Ticket
from storage.database import Database
from storage.encoding import encode
from storage.errors import IllegalTransition
from storage.files import MediaFiles
from storage.images import ImageStore
from storage.jobs import JobStore
from storage.media import ImageFormat, MediaName
from storage.records import ImageRecord, JobRecord, NewImage, NewJob
from storage.thumbnails import make_thumbnail

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What a client asked for, settled: one request an image, seeds counting up."""

    owner_id: str
    entry: ModelEntry
    requests: Sequence[ImageRequest]
    format: ImageFormat = ImageFormat.PNG
    compression: int | None = None
    priority: int = 0
    deadline: float | None = None
    session_id: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def submission(self) -> Submission:
        return Submission(self.priority, self.owner_id, self.deadline)


@dataclass(frozen=True)
class Result:
    """A job's end: the images made, why others were not, and (`promised`) how many seconds it was expected to take."""

    job: JobRecord
    images: Sequence[ImageRecord]
    failures: dict[int, str]
    seconds: float
    promised: float | None
    prompt: TokenCount
    negative_prompt: TokenCount


@dataclass(frozen=True)
class Kept:
    """One picture whose files are on disk, and whose row is not yet."""

    image: NewImage
    picture: Picture


@dataclass(eq=False)
class _Run:
    """One order under way. Its task is never cancelled, since a file or a row may be half-way; its tickets are."""

    order: Order
    tickets: list[Ticket] = field(default_factory=list)
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

    `broken` names the models that could not be loaded when they were last wanted.
    """

    def __init__(self, database: Database, folder: Path, scheduler: Scheduler) -> None:
        self.boot_id = str(uuid4())
        self.images = ImageStore(database)
        self.files = MediaFiles(folder)
        self.broken: set[str] = set()
        self._jobs = JobStore(database)
        self._scheduler = scheduler
        self._under_way: dict[asyncio.Task[Result], _Run] = {}
        self._reserved = 0
        self._closed = False

    async def recover(self) -> None:
        """End what a run before this one left open: whoever waited for it is gone with that run."""
        await self._jobs.recover(self.boot_id)
        answer, message = explain(Interrupted())
        for job in await self._jobs.pending():
            await self._jobs.fail(job.id, answer.code, message)
        swept = await self.files.sweep(self.images.known_ids)
        log.info("swept %s", swept)

    async def run(self, order: Order) -> Result:
        """Carry an order out; if the caller is cancelled, so is the job, and its rows are free by the next step.

        Raises:
            QueueFull, Interrupted: before anything was written.
            PipelineError, StorageError: the first image's failure, when no image could be made.
        """
        if self._closed:
            raise Interrupted
        self._scheduler.check_room(order.entry, order.requests, self._reserved)
        self._reserved += len(order.requests)
        run = _Run(order)
        task = asyncio.create_task(self._carry_out(run))
        self._under_way[task] = run
        task.add_done_callback(self._forget)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            run.stop(ClientGone("The client hung up."))
            raise
        return task.result()

    def stop(self) -> None:
        """Take no more orders and end those under way; their waiters hear `Interrupted`."""
        self._closed = True
        for run in self._under_way.values():
            run.stop(Interrupted())

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
            return await self._complete(run.order, job, made)
        except Exception as error:
            await self._end(job, error, [kept.image for kept in made if isinstance(kept, Kept)])
            raise

    async def _accept(self, run: _Run) -> JobRecord:
        """The job's row, durable, and then its tickets."""
        try:
            job = await self._jobs.insert(_new_job(run.order))
        finally:
            self._reserved -= len(run.order.requests)
        if run.stopped is None:  # nothing was awaited since, so the room that was reserved is still there
            run.tickets = [
                self._scheduler.submit(run.order.entry, request, run.order.submission, lambda _: run.begun.set())
                for request in run.order.requests
            ]
        return job

    async def _make(self, run: _Run, job: JobRecord) -> list[Kept | BaseException]:
        """In each image's place its picture, or why there is none."""
        keeping = [asyncio.create_task(self._keep(run.order, index, one)) for index, one in enumerate(run.tickets)]
        try:
            await run.begun.wait()
            if run.stopped is None:
                await self._jobs.start(job.id, self.boot_id)
        except Exception as error:
            run.stop(error)
        return await asyncio.gather(*keeping, return_exceptions=True)

    async def _keep(self, order: Order, index: int, ticket: Ticket) -> Kept:
        """Wait for one picture and put its files on disk."""
        try:
            picture = await ticket.future
        except CheckpointError:
            self.broken.add(order.entry.name)
            raise
        self.broken.discard(order.entry.name)
        return Kept(await asyncio.to_thread(self._write, order, index, ticket.request, picture), picture)

    def _write(self, order: Order, index: int, request: ImageRequest, picture: Picture) -> NewImage:
        """Encode and save one picture, in a worker thread."""
        image_id, created_at = str(uuid4()), datetime.now(UTC)
        text = metadata(request, order.entry)
        encoded = encode(picture.image, order.format, text, order.compression)
        stored = self.files.save(image_id, created_at, encoded, make_thumbnail(picture.image), order.format)
        settled = asdict(request)
        return NewImage(
            id=image_id,
            index=index,
            family=order.entry.family,
            model_hash=None,
            negative_prompt=settled.pop("negative_prompt") or "",
            parameters=order.notes | {"clip_skip": settled.pop("clip_skip")},
            format=order.format,
            byte_count=stored.byte_count,
            sha256=stored.sha256,
            generation_seconds=picture.seconds,
            cost=order.entry.price,
            created_at=created_at,
            **settled,
        )

    async def _complete(self, order: Order, job: JobRecord, made: Sequence[Kept | BaseException]) -> Result:
        """Write the rows of the pictures and the job's end; the first failure if there is no picture."""
        kept = [one for one in made if isinstance(one, Kept)]
        failures = {
            index: public(one, order.entry.name) for index, one in enumerate(made) if isinstance(one, BaseException)
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
        images = await self.images.of_job(order.owner_id, job.id)
        first = kept[0].picture
        seconds = max(one.picture.seconds for one in kept)
        promised = max((one.picture.promised or 0.0 for one in kept), default=None)
        return Result(ended, images, reasons, seconds, promised, first.prompt, first.negative_prompt)

    async def _end(self, job: JobRecord, error: Exception, images: Sequence[NewImage]) -> None:
        """End a job without pictures. Its row first: files may go once it is sure that no row names them."""
        try:
            if isinstance(error, ClientGone):
                await self._jobs.cancel(job.owner_id, job.id)
            else:
                answer, message = explain(error)
                await self._jobs.fail(job.id, answer.code, message)
            for image in images:
                await asyncio.to_thread(self._delete, image)
        except IllegalTransition as ended:
            log.warning("%s Its files stay.", ended)
        except Exception:
            log.exception("job %s could not be ended; the next start of the server ends it", job.id)

    def _delete(self, image: NewImage) -> None:
        self.files.delete(MediaName.of_image(image.id, image.created_at, image.format))
        self.files.delete(MediaName.of_thumbnail(image.id, image.created_at))

    def _forget(self, task: "asyncio.Task[Result]") -> None:
        run = self._under_way.pop(task)
        if not task.cancelled():
            error = task.exception()  # retrieved: its waiter may have gone, and then nobody else asks
            kept = 0 if error else len(task.result().images)
            self._scheduler.books.meter.job_ended(JobEnd(run.order.entry.name, len(run.order.requests), kept, error))


def _new_job(order: Order) -> NewJob:
    first = order.requests[0]
    return NewJob(
        owner_id=order.owner_id,
        session_id=order.session_id,
        priority=order.priority,
        request={"images": [asdict(request) for request in order.requests], "format": order.format} | order.notes,
        prompt=first.prompt,
        negative_prompt=first.negative_prompt or "",
        model=order.entry.name,
        image_count=len(order.requests),
        user=order.user,
        safety_identifier=order.safety_identifier,
    )
