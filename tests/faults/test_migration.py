"""Kill -9 within a migration: the next start finds the old database or the new one, and the copy made before."""

import asyncio
import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import storage.schema
from storage.database import Database
from storage.jobs import JobStore
from storage.schema import DATABASE_NAME, inspect_database
from tests.storage_fakes import child, new_job, opened
from tests.test_storage_migrations import HEAD, NEXT

pytestmark = pytest.mark.anyio

DEATH = "import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n"


def start(folder: Path, migrations: Path, die_copying: bool) -> None:
    """A start of the server's storage with these migrations."""
    storage.schema.MIGRATIONS = migrations
    if die_copying:
        storage.schema.sync_folder = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    asyncio.run(Database.open(folder))


@pytest.mark.parametrize("when", ["copying", "half-way"])
async def test_killed_within_a_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    folder, migrations = tmp_path / "data", tmp_path / "migrations"
    shutil.copytree(storage.schema.MIGRATIONS, migrations)
    async with opened(folder) as database:
        job = await JobStore(database).insert(new_job())
    revision = migrations / "versions" / "revision_next.py"
    revision.write_text(f"{NEXT}    {DEATH}" if when == "half-way" else NEXT)
    process = child(start, folder, migrations, when == "copying")
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    found = inspect_database(folder)
    assert (found.revision, found.quick_check) == (HEAD, "ok"), "nothing of it is there"
    revision.write_text(NEXT)
    monkeypatch.setattr(storage.schema, "MIGRATIONS", migrations)
    async with opened(folder) as database:
        assert await JobStore(database).get("ann", job.id) == job
    assert inspect_database(folder).revision == "next"
    assert not (folder / "unfinished").exists()
    with closing(sqlite3.connect(folder / f"{DATABASE_NAME}.before-next")) as copy:
        assert copy.execute("SELECT id FROM jobs").fetchall() == [(job.id,)]
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
