"""Jobs, images and dying processes for the storage tests."""

import asyncio
import multiprocessing
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from sqlalchemy import Engine, event
from sqlmodel import select

from storage.database import Database
from storage.files import MediaFiles, StoredFile, Swept
from storage.images import ImageStore
from storage.jobs import JobStore
from storage.media import ImageFormat, MediaName
from storage.records import JobStatus, NewImage, NewJob
from storage.tables import Image, Job

SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["storage.jobs", "storage.images", "storage.files"])


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Database]:
    database = await Database.open(folder)
    try:
        yield database
    finally:
        await database.close()


def new_job(**changes: object) -> NewJob:
    given = {"owner_id": "ann", "request": {"steps": 20}, "prompt": "a lighthouse", "model": "demo"}
    return NewJob(**cast("dict[str, Any]", given | changes))


def new_image(**changes: object) -> NewImage:
    given = {
        "id": str(uuid4()),
        "index": 0,
        "prompt": "a lighthouse",
        "negative_prompt": "fog",
        "model": "demo",
        "family": "sdxl",
        "model_hash": "0123abcd",
        "seed": 7,
        "width": 64,
        "height": 64,
        "steps": 20,
        "guidance_scale": 7.0,
        "sampler": "Euler a",
        "schedule": "Karras",
        "parameters": {"clip_skip": 1},
        "format": ImageFormat.PNG,
        "byte_count": 10,
        "sha256": "00",
        "generation_seconds": 1.5,
        "cost": 0.25,
        "created_at": datetime.now(UTC),
    }
    return NewImage(**cast("dict[str, Any]", given | changes))


async def finished_job(database: Database, *images: NewImage, owner_id: str = "ann") -> str:
    """A completed job with these images; its id."""
    jobs = JobStore(database)
    job = await jobs.insert(new_job(owner_id=owner_id, image_count=len(images)))
    await jobs.start(job.id, "boot")
    await jobs.complete(job.id, "boot", images)
    return job.id


def save(files: MediaFiles, image: NewImage, content: bytes = b"picture") -> StoredFile:
    return files.save(image.id, image.created_at, content, b"thumbnail", image.format)


# What the dying processes run.


def child(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    process = SPAWN.Process(target=target, args=arguments)
    process.start()
    return process


def run_jobs_and_die(folder: Path, acknowledged: Path, point: int, job_count: int) -> None:
    """Run jobs to their end, but kill this process at the given disk operation or commit."""
    asyncio.run(_run_jobs(folder, acknowledged, point, job_count))


async def _run_jobs(folder: Path, acknowledged: Path, point: int, job_count: int) -> None:
    _die_at(point)
    database = await Database.open(folder)
    await JobStore(database).recover(f"boot-{os.getpid()}")
    for _ in range(job_count):
        await _run_job(JobStore(database), MediaFiles(folder), acknowledged)
    await database.close()


async def _run_job(jobs: JobStore, files: MediaFiles, acknowledged: Path) -> None:
    boot_id = f"boot-{os.getpid()}"
    job = await jobs.insert(new_job(image_count=2, attached=False))
    with acknowledged.open("a") as log:
        log.write(f"{job.id}\n")
    await jobs.start(job.id, boot_id)
    images = []
    for index in range(2):
        content = random.randbytes(20_000)
        image = new_image(index=index, sha256=sha256(content).hexdigest(), byte_count=len(content))
        await asyncio.to_thread(save, files, image, content)
        images.append(image)
    await jobs.complete(job.id, boot_id, images)


def _die_at(point: int) -> None:
    """Count every write, fsync and rename of this process and every commit; kill it before the given one."""
    count = 0

    def tick(*_: object) -> None:
        nonlocal count
        count += 1
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **options: (tick(), operation(*arguments, **options))[1]

    for name in ("write", "fsync", "rename"):
        setattr(os, name, counted(getattr(os, name)))
    event.listen(Engine, "commit", tick)


async def check_invariants(folder: Path, acknowledged: Path) -> Swept:
    """Open what a dead process left: nothing accepted is lost, and rows and files agree."""
    files = MediaFiles(folder)
    async with opened(folder) as database:
        await JobStore(database).recover("the next boot")
        async with database.read() as session:
            jobs = (await session.exec(select(Job))).all()
            images = (await session.exec(select(Image))).all()
        swept = await files.sweep(ImageStore(database).known_ids, older_than=timedelta(days=-1))
    accepted = set(acknowledged.read_text().split()) if acknowledged.exists() else set()
    assert accepted <= {job.id for job in jobs}
    for job in jobs:
        count = sum(image.job_id == job.id for image in images)
        assert (job.status, count) in {
            (JobStatus.PENDING, 0),
            (JobStatus.COMPLETED, 2),
            (JobStatus.FAILED, 0),
        }
    for image in images:
        record = new_image(**(image.model_dump(include=set(NewImage.__dataclass_fields__))))
        _assert_file(files, record)
    on_disk = [path for path in (folder / "media").rglob("*") if path.is_file()]
    assert len(on_disk) == 2 * len(images)
    return swept


def _assert_file(files: MediaFiles, image: NewImage) -> None:
    file, status = files.open(MediaName.of_image(image.id, image.created_at, image.format))
    with file:
        assert sha256(file.read()).hexdigest() == image.sha256
    assert status.st_size == image.byte_count
    files.open(MediaName.of_thumbnail(image.id, image.created_at))[0].close()


def hold_open(folder: Path, ready: Event) -> None:
    """Open the database, say so, and stay until killed."""

    async def hold() -> None:
        database = await Database.open(folder)
        ready.set()
        await asyncio.sleep(60)
        await database.close()

    asyncio.run(hold())
