"""Jobs: from a settled order to pictures on disk and rows that say so. Durable before it is computed."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipelines.catalog import ModelEntry
from pipelines.infotext import metadata
from pipelines.request import ImageRequest
from server.errors import explain
from server.scheduling.loop import Scheduler
from server.scheduling.queue import Picture, Ticket
from storage.database import Database
from storage.encoding import encode
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
    session_id: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A job's end: the images that were made, in order, and why others were not."""

    job: JobRecord
    images: Sequence[ImageRecord]
    failures: dict[int, str]
    seconds: float
    prompt_tokens: int
    dropped_tokens: int


class Jobs:
    """Runs orders. One instance a server; `boot_id` tells its work from that of a run before it."""

    def __init__(self, database: Database, folder: Path, scheduler: Scheduler) -> None:
        self.boot_id = str(uuid4())
        self.images = ImageStore(database)
        self.files = MediaFiles(folder)
        self._jobs = JobStore(database)
        self._scheduler = scheduler

    async def recover(self) -> None:
        """End what a run before this one left open: whoever waited for it is gone with that run."""
        await self._jobs.recover(self.boot_id)
        for job in await self._jobs.pending():
            await self._jobs.fail(job.id, "interrupted", "The server stopped before the job was done.")
        swept = await self.files.sweep(self.images.known_ids)
        log.info("swept %s", swept)

    async def run(self, order: Order) -> Result:
        """Carry an order out; if the caller is cancelled, so is the job, and its rows are free by the next step.

        Raises:
            QueueFull: before anything was written.
            PipelineError, StorageError: the first image's failure, when no image could be made.
        """
        self._scheduler.check_room(len(order.requests))
        job = await self._jobs.insert(_new_job(order))
        try:
            return await self._work(order, job)
        except asyncio.CancelledError:
            await asyncio.shield(self._jobs.cancel(order.owner_id, job.id))
            raise
        except Exception as error:
            answer, message = explain(error)
            await self._jobs.fail(job.id, answer.code, message)
            raise

    async def read(self, image: ImageRecord) -> bytes:
        """An image's file.

        Raises:
            MediaNotFound: it was deleted meanwhile.
        """

        def contents() -> bytes:
            with self.files.open(image.media_name)[0] as stream:
                return stream.read()

        return await asyncio.to_thread(contents)

    async def _work(self, order: Order, job: JobRecord) -> Result:
        begun = asyncio.Event()
        tickets = [
            self._scheduler.submit(order.entry, request, order.priority, lambda _: begun.set())
            for request in order.requests
        ]
        keeping = [asyncio.create_task(self._keep(order, index, ticket)) for index, ticket in enumerate(tickets)]
        kept: list[tuple[NewImage, Picture] | BaseException] = []
        try:
            await begun.wait()
            await self._jobs.start(job.id, self.boot_id)
            kept = await asyncio.gather(*keeping, return_exceptions=True)
            return await self._complete(order, job, kept)
        except BaseException:
            for task in keeping:
                task.cancel()
            kept = await asyncio.gather(*keeping, return_exceptions=True)
            await asyncio.shield(self._discard([pair[0] for pair in kept if isinstance(pair, tuple)]))
            raise

    async def _keep(self, order: Order, index: int, ticket: Ticket) -> tuple[NewImage, Picture]:
        """Wait for one picture and put its files on disk."""
        picture = await ticket.future
        return await asyncio.to_thread(self._write, order, index, ticket.request, picture), picture

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

    async def _complete(
        self, order: Order, job: JobRecord, kept: Sequence[tuple[NewImage, Picture] | BaseException]
    ) -> Result:
        failures = {index: error for index, error in enumerate(kept) if isinstance(error, BaseException)}
        made = [pair for pair in kept if isinstance(pair, tuple)]
        if not made:
            raise failures[0]
        reasons = {
            index: explain(error)[1] if isinstance(error, Exception) else "cancelled"
            for index, error in failures.items()
        }
        ended = await self._jobs.complete(
            job.id,
            self.boot_id,
            [image for image, _ in made],
            error_code="partly_failed" if failures else None,
            error_message="; ".join(f"image {index}: {reason}" for index, reason in reasons.items()) or None,
        )
        images = await self.images.of_job(order.owner_id, job.id)
        seconds = max(picture.seconds for _, picture in made)
        return Result(ended, images, reasons, seconds, made[0][1].prompt_tokens, made[0][1].dropped_tokens)

    async def _discard(self, images: Sequence[NewImage]) -> None:
        """Remove the files of pictures that got no row."""
        for image in images:
            for name in (
                MediaName.of_image(image.id, image.created_at, image.format),
                MediaName.of_thumbnail(image.id, image.created_at),
            ):
                await asyncio.to_thread(self.files.delete, name)


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
