"""The database file and its connections: who may open it, what is refused, what a transaction promises."""

import asyncio
import sqlite3
import stat
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

import storage.database
from storage.database import LEAVES_EVENTS, Database
from storage.errors import DatabaseBusy, DatabaseDamaged, DatabaseTooNew, FolderUnusable
from storage.jobs import JobStore
from storage.schema import inspect_database
from storage.tables import Job
from tests.storage_fakes import new_job, opened

pytestmark = pytest.mark.anyio


async def _pragma(session: AsyncSession, name: str) -> object:
    connection = await session.connection()
    return (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()


async def test_the_writer_is_durable_and_the_readers_cannot_write(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        async with database.write() as session:
            assert await _pragma(session, "synchronous") == 2
            assert await _pragma(session, "journal_mode") == "wal"
            assert await _pragma(session, "foreign_keys") == 1
            assert await _pragma(session, "busy_timeout") == 5000
        async with database.read() as session:
            assert await _pragma(session, "query_only") == 1
            assert await _pragma(session, "wal_autocheckpoint") == 0
            with pytest.raises(OperationalError, match="readonly"):
                await (await session.connection()).exec_driver_sql("DELETE FROM jobs")


async def test_everything_is_private_to_the_user(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    async with opened(folder) as database:
        await JobStore(database).insert(new_job())
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes == dict.fromkeys(("lock", "darkroom.db", "darkroom.db-wal", "darkroom.db-shm"), 0o600)


async def test_a_write_transaction_holds_the_write_lock_while_it_reads(tmp_path: Path) -> None:
    """A DEFERRED transaction would let the stranger in, and then fail at its own write."""
    async with opened(tmp_path) as database:
        job = await JobStore(database).insert(new_job())
        async with database.write() as session:
            mine = (await session.exec(select(Job).where(Job.id == job.id))).one()
            with (
                closing(sqlite3.connect(tmp_path / "darkroom.db", timeout=0)) as stranger,
                pytest.raises(sqlite3.OperationalError, match="locked"),
            ):
                stranger.execute("UPDATE jobs SET priority = 5")
            mine.priority += 1
        assert (await JobStore(database).get("ann", job.id)).priority == 1


async def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        job = await JobStore(database).insert(new_job())

        async def count_up() -> None:
            async with database.write() as session:
                row = (await session.exec(select(Job).where(Job.id == job.id))).one()
                seen = row.priority
                await asyncio.sleep(0.005)
                row.priority = seen + 1

        await asyncio.gather(*(count_up() for _ in range(10)))
        assert (await JobStore(database).get("ann", job.id)).priority == 10


async def test_an_error_rolls_everything_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        job = await JobStore(database).insert(new_job())
        with pytest.raises(RuntimeError):
            async with database.write() as session:
                row = (await session.exec(select(Job).where(Job.id == job.id))).one()
                row.priority = 9
                await session.flush()
                raise RuntimeError
        assert (await JobStore(database).get("ann", job.id)).priority == 0


async def test_cancelled_writers_leave_the_database_usable(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        for delay in range(20):
            tasks = [asyncio.create_task(jobs.insert(new_job())) for _ in range(3)]
            await asyncio.sleep(delay / 1000)
            tasks[delay % 3].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(result, BaseException) for result in results) <= 1
        assert len(await jobs.pending()) >= 40


async def test_a_writer_that_is_cut_off_leaves_no_lock_behind(tmp_path: Path) -> None:
    """Whoever keeps the error keeps its cursor, half read, which must not keep the transaction."""
    loop = asyncio.get_running_loop()
    async with opened(tmp_path) as database:
        for _ in range(3):
            await JobStore(database).insert(new_job())

        async def write() -> None:
            async with database.write() as session:
                raw = await (await session.connection()).get_raw_connection()
                # Heard in the connection's thread: the cancellation is there before the statement's first row.
                await raw.driver_connection.set_trace_callback(
                    lambda sql: sql.startswith("SELECT") and loop.call_soon_threadsafe(writing.cancel)
                )
                await session.exec(select(Job))

        writing = asyncio.create_task(write())
        [kept] = await asyncio.gather(writing, return_exceptions=True)
        assert isinstance(kept, asyncio.CancelledError)
        with closing(sqlite3.connect(tmp_path / "darkroom.db", timeout=1, isolation_level=None)) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
        await JobStore(database).insert(new_job())


async def test_a_commit_that_a_cancellation_overtook_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        committed = asyncio.Event()
        event.listen(database._writer.sync_engine, "commit", lambda _: committed.set())

        async def write() -> None:
            async with database.write() as session:
                session.info[LEAVES_EVENTS] = True

        writing = asyncio.create_task(write())
        await committed.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert database.events_written.is_set()


async def test_an_error_tells_none_of_what_was_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        async with database.write() as session:
            await (await session.connection()).exec_driver_sql(
                "CREATE TRIGGER no BEFORE INSERT ON jobs BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        with pytest.raises(IntegrityError) as caught:
            await JobStore(database).insert(new_job(prompt=f"a {'hidden'} lighthouse"))
        assert "a hidden lighthouse" not in "".join(traceback.format_exception(caught.value))


async def test_a_stranger_who_holds_the_lock_too_long_makes_it_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = ("PRAGMA busy_timeout = 50", *storage.database.WRITER_PRAGMAS[1:])
    monkeypatch.setattr(storage.database, "WRITER_PRAGMAS", impatient)
    async with opened(tmp_path) as database:
        with closing(sqlite3.connect(tmp_path / "darkroom.db", isolation_level=None)) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseBusy):
                await JobStore(database).insert(new_job())
        await JobStore(database).insert(new_job())


async def _filled(folder: Path) -> Path:
    async with opened(folder) as database, database.write() as session:
        for number in range(300):
            session.add(Job(**_row(number)))
    return folder / "darkroom.db"


def _row(number: int) -> dict[str, object]:
    return asdict(new_job()) | {"id": str(number), "status": "pending", "created_at": datetime.now(UTC)}


def _scribble(path: Path) -> None:
    """Overwrite the pages in the middle of the file."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xa5" * (size // 4))


def _replace_by_text(path: Path) -> None:
    path.write_text("this is no database " * 100)


def _truncate(path: Path) -> None:
    path.write_bytes(b"")


def _replace_by_another_database(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE songs (title TEXT)")


@pytest.mark.parametrize("damage", [_scribble, _replace_by_text, _truncate, _replace_by_another_database])
async def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = await _filled(tmp_path)
    damage(path)
    before = path.read_bytes()
    with pytest.raises(DatabaseDamaged, match="put a good copy in its place"):
        await Database.open(tmp_path)
    assert path.read_bytes() == before
    with pytest.raises(DatabaseDamaged):  # and not FolderInUse: the failed start let go of the folder
        await Database.open(tmp_path)


async def test_a_newer_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = await _filled(tmp_path)
    with closing(sqlite3.connect(path)) as future, future:
        future.execute("UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(DatabaseTooNew, match="9999"):
        await Database.open(tmp_path)
    assert path.read_bytes() == before


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderUnusable, match="file/data"):
        await Database.open(tmp_path / "file" / "data")


async def test_inspection_works_beside_a_server_and_on_nothing(tmp_path: Path) -> None:
    nothing = inspect_database(tmp_path)
    assert (nothing.exists, nothing.revision, nothing.quick_check) == (False, None, None)
    assert list(tmp_path.iterdir()) == []
    async with opened(tmp_path) as database:
        await JobStore(database).insert(new_job())
        report = inspect_database(tmp_path)
        assert (report.exists, report.revision, report.quick_check) == (True, report.head, "ok")
        assert report.sqlite_version == database.sqlite_version
    _replace_by_text(tmp_path / "darkroom.db")
    assert inspect_database(tmp_path).quick_check == "file is not a database"
