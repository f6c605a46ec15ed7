"""Another program that holds the database: who comes hears 503, nothing is lost, and all goes on when it lets go."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import httpx
import pytest

import server.jobs.backoff
import server.jobs.runs
import storage.database
from storage.schema import DATABASE_NAME
from tests.fake_server import PATIENCE, eventually, serving
from tests.faults.test_disk import completed, look, queued
from tests.storage_fakes import SPAWN, child


def hold_the_write_lock(path: Path, held: Event, let_go: Event) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        held.set()
        let_go.wait(PATIENCE)


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Another process writes for as long as the block lasts."""
    held, let_go = SPAWN.Event(), SPAWN.Event()
    process = child(hold_the_write_lock, data / DATABASE_NAME, held, let_go)
    assert held.wait(PATIENCE)
    try:
        yield
    finally:
        let_go.set()
        process.join(PATIENCE)


def test_a_database_held_by_another_program_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient = ("PRAGMA busy_timeout = 50", *storage.database.WRITER_PRAGMAS[1:])
    monkeypatch.setattr(storage.database, "WRITER_PRAGMAS", impatient)
    monkeypatch.setattr(server.jobs.backoff, "BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(server.jobs.runs, "BACKOFF_SECONDS", 0.05)
    with serving(tmp_path) as fake:
        fake.engine.gates["finish"].close()
        job = queued(fake)
        assert fake.engine.gates["finish"].reached.wait(PATIENCE)
        with locked(tmp_path):
            answers = [fake.post(), httpx.post(f"{fake.url}/api/v1/images/generate", json={"prompt": "a hat"})]
            for answer in answers:
                assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
                assert answer.json()["error"]["code"] == "database_busy"
            fake.engine.open()
            eventually(lambda: fake.engine.decoded)
            assert look(fake, job)["status"] == "processing"
            assert httpx.get(fake.url + "/api/images/history").json()["total"] == 0
        assert len(completed(fake, job)["resultImages"]) == 1
        assert fake.statuses == ["completed"]
        fake.check_consistent()
