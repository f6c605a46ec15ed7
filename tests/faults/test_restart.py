"""A restart with a thousand queued jobs: every one is in line again, in its order; a stop writes none of them anew."""

from pathlib import Path

import pytest

import storage.jobs
from server.gpu import WorkerThread
from server.jobs.events import Events
from server.jobs.jobs import Jobs
from server.jobs.orders import Order, to_job
from server.scheduling.loop import Scheduler
from server.weights import WeightHashes
from storage.database import Database
from storage.jobs import JobStore
from storage.records import JobRecord
from storage.room import Room
from tests.fakes import FakeEngine, request
from tests.faults.dying_server import CATALOG
from tests.storage_fakes import opened

pytestmark = pytest.mark.anyio

COUNT = 1000


def recovering(database: Database, folder: Path, gpu: WorkerThread) -> tuple[Jobs, Scheduler]:
    scheduler = Scheduler(FakeEngine(), gpu, gpu, max_rows=8, queue_limit=10)
    return Jobs(database, Room(folder), scheduler, WeightHashes(None), Events()), scheduler


async def test_a_thousand_queued_jobs_are_in_line_again_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = WorkerThread("gpu")
    async with opened(tmp_path) as database:
        store, accepted = JobStore(database), list[JobRecord]()
        for number in range(COUNT):
            order = Order("ann", CATALOG.entries["fake"], [request(seed=number)], attached=False, priority=number % 3)
            accepted.append(await store.insert(to_job(order)))
        tried = await store.start(accepted.pop().id, "another boot")
        jobs, scheduler = recovering(database, tmp_path, gpu)
        await jobs.recover(CATALOG)
        due = sorted(accepted, key=lambda job: -job.priority)
        assert [job.id for job in jobs.waiting] == [job.id for job in due]
        assert [ticket.request.seed for ticket in scheduler.line.tickets] == [
            job.request["images"][0]["seed"] for job in due
        ]
        assert [job.id for job in await jobs.store.pending(suspect=True)] == [tried.id]

        def refuse(*_: object) -> None:
            raise AssertionError("a job that only waited is written anew")

        monkeypatch.setattr(storage.jobs, "move", refuse)
        await jobs.close()
        assert len(await store.pending()) == COUNT
    gpu.close()
