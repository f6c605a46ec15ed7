"""Data folders that a server must not start on: one line says why and what to do, and nothing is touched."""

import gc
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from server.serving import spare_libraries
from storage.jobs import JobStore
from storage.schema import DATABASE_NAME
from tests.faults.conftest import mounted
from tests.storage_fakes import SPAWN, child, hold_open, new_job, opened
from tests.test_cli import variables

pytestmark = pytest.mark.anyio


def damage_a_page(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xa5" * (size // 4))


def replace_by_text(path: Path) -> None:
    path.write_text("this is no database " * 100)


def raise_the_schema(path: Path) -> None:
    with closing(sqlite3.connect(path)) as future, future:
        future.execute("UPDATE alembic_version SET version_num = '9999'")


def serve(data: Path, checkpoints: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "serve", "--port", "0", "--data", str(data)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=variables(checkpoints),
    )


def refused(data: Path, checkpoints: Path, advice: str) -> None:
    """The start fails with one line, which holds the advice, and leaves every file as it is."""
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file() and path.name != "lock"}
    done = serve(data, checkpoints)
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert error.startswith("Error: ") and advice in error
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("harm", "advice"),
    [
        (damage_a_page, "put a good copy in its place, or move it away to start empty"),
        (replace_by_text, "put a good copy in its place, or move it away to start empty"),
        (raise_the_schema, "Install the newer Darkroom again, or put back the copy made before its migration"),
    ],
)
async def test_a_database_that_is_not_to_be_trusted(
    checkpoints: Path, tmp_path: Path, harm: Callable[[Path], None], advice: str
) -> None:
    async with opened(tmp_path / "data") as database, database.write() as session:
        connection = await session.connection()
        await connection.exec_driver_sql("INSERT INTO switches (name, enabled) VALUES ('x', 1)")
    harm(tmp_path / "data" / DATABASE_NAME)
    refused(tmp_path / "data", checkpoints, advice)


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """Not even root may write to it."""
    with mounted(tmp_path / "unwritable", "size=2m,ro") as folder:
        yield folder


def test_a_folder_that_may_only_be_read(checkpoints: Path, unwritable: Path) -> None:
    refused(unwritable / "data", checkpoints, "Choose a folder this user may write to")
    refused(unwritable, checkpoints, "Choose a folder this user may write to")


def test_a_folder_that_another_server_holds(checkpoints: Path, tmp_path: Path) -> None:
    ready = SPAWN.Event()
    holder = child(hold_open, tmp_path / "data", ready)
    try:
        assert ready.wait(60)
        done = serve(tmp_path / "data", checkpoints)
    finally:
        holder.kill()
        holder.join(20)
    assert done.returncode == 1
    assert f"in use by process {holder.pid}. Stop that server, or give this one a folder of its own" in done.stderr


async def test_a_log_cut_off_anywhere_is_what_a_power_cut_leaves(tmp_path: Path) -> None:
    """SQLite takes whole transactions from the write-ahead log and none of a torn one: the start goes on from there."""
    async with opened(tmp_path / "data") as database:
        jobs = [await JobStore(database).insert(new_job()) for _ in range(12)]
        names = (DATABASE_NAME, f"{DATABASE_NAME}-wal")
        as_killed = {name: (tmp_path / "data" / name).read_bytes() for name in names}
    log, kept = as_killed[names[1]], []
    for part in range(10):
        copy = tmp_path / str(part)
        copy.mkdir()
        (copy / names[0]).write_bytes(as_killed[names[0]])
        (copy / names[1]).write_bytes(log[: len(log) * part // 10 + 17])
        async with opened(copy) as database:
            found = [job.id for job in await JobStore(database).pending()]
        assert found == [job.id for job in jobs][: len(found)], "the newest are missing, and no others"
        kept.append(len(found))
    assert kept == sorted(kept) and kept[0] < kept[-1] < len(jobs)


def test_the_garbage_collector_no_longer_looks_at_what_was_imported() -> None:
    before = len(gc.get_objects())
    try:
        spare_libraries()
        assert gc.get_freeze_count() > 50_000 and len(gc.get_objects()) < before / 10
    finally:
        gc.unfreeze()
