"""A server without HTTP that is killed: real jobs, scheduler, database and files over a fake engine."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.catalog import Catalog
from server.catalogue import Catalogue
from server.gpu import WorkerThread
from server.jobs import runs
from server.jobs.events import Events
from server.jobs.jobs import Jobs
from server.jobs.orders import Order
from server.jobs.resuming import resume
from server.scheduling.loop import Scheduler
from server.weights import WeightHashes
from storage.database import Database
from storage.files import MediaFiles
from storage.jobs import JobStore
from storage.room import Room
from tests.fakes import FakeEngine, entry, request

CATALOG = Catalog({"fake": entry("fake")}, "fake", Path("models.toml"))

POINTS = ("after insert", "mid-denoise", "before files", "after files", "before commit", "after commit")
"""Where a server may be told to die."""


def serve_and_die(folder: Path, acknowledged: Path, point: str, new_jobs: int) -> None:
    """Recover what is there, take new jobs and note down each that was accepted, until killed or nothing is left."""
    asyncio.run(_serve(folder, acknowledged, point, new_jobs))


async def _serve(folder: Path, acknowledged: Path, point: str, new_jobs: int) -> None:
    engine = FakeEngine(step_seconds=0.001)
    _plant(point, engine)
    database = await Database.open(folder)
    gpu, loader = WorkerThread("gpu"), WorkerThread("loader")
    scheduler = Scheduler(engine, gpu, loader, max_rows=8, queue_limit=10_000)
    jobs = Jobs(database, Room(folder), scheduler, WeightHashes(None), Events())
    await jobs.recover(CATALOG)
    computing = asyncio.create_task(scheduler.run())
    resuming = asyncio.create_task(resume(jobs, Catalogue(CATALOG)))
    for number in range(new_jobs):
        requests = [request(steps=8, seed=2 * number + index) for index in range(2)]
        order = Order("ann", CATALOG.entries["fake"], requests, attached=False)
        job = await jobs.submit(order)
        with acknowledged.open("a") as log:
            log.write(f"{job.id}\n")
    await resuming
    await jobs.idle()
    await jobs.close()
    computing.cancel()
    await database.close()
    loader.close()
    gpu.close()


def _plant(point: str, engine: FakeEngine) -> None:
    """Die at this point, the third time that it is reached: some are done then, and some under way."""
    places: dict[str, tuple[Any, str, bool]] = {
        "after insert": (JobStore, "insert", False),
        "mid-denoise": (engine, "step", True),
        "before files": (runs, "keep", True),
        "after files": (MediaFiles, "save", False),
        "before commit": (JobStore, "complete", True),
        "after commit": (JobStore, "complete", False),
    }
    if point in places:
        owner, name, before = places[point]
        setattr(owner, name, _dying(getattr(owner, name), before))


def _dying(function: Callable[..., Any], before: bool) -> Callable[..., Any]:
    reached = 0

    def tick(now: bool) -> None:
        nonlocal reached
        reached += now
        if now and reached == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    if asyncio.iscoroutinefunction(function):

        async def awaited(*arguments: Any, **options: Any) -> Any:
            tick(before)
            result = await function(*arguments, **options)
            tick(not before)
            return result

        return awaited

    def called(*arguments: Any, **options: Any) -> Any:
        tick(before)
        result = function(*arguments, **options)
        tick(not before)
        return result

    return called
