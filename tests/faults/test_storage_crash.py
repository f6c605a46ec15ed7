"""Kill -9 at every disk operation and at random moments: nothing accepted is lost, rows and files agree."""

import random
import signal
import time
from pathlib import Path

import pytest

from storage.database import Database
from storage.errors import FolderInUse
from tests.storage_fakes import SPAWN, check_invariants, child, hold_open, opened, run_jobs_and_die

pytestmark = pytest.mark.anyio


async def test_killed_before_every_disk_operation_of_a_job(tmp_path: Path) -> None:
    swept_anything = False
    for point in range(1, 100):
        folder, acknowledged = tmp_path / str(point), tmp_path / f"{point}.log"
        process = child(run_jobs_and_die, folder, acknowledged, point, 1)
        process.join(20)
        swept = await check_invariants(folder, acknowledged)
        swept_anything |= swept.orphaned > 0
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert point > 20, "the process was meant to die many times before it could finish"
    assert swept_anything, "some deaths leave files without a row"


async def test_killed_at_random_moments_on_one_folder(tmp_path: Path) -> None:
    acknowledged = tmp_path / "acknowledged"
    chance = random.Random(1)
    for _ in range(8):
        process = child(run_jobs_and_die, tmp_path / "data", acknowledged, 0, 1000)
        while process.is_alive() and not acknowledged.exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0.05, 0.4))
        process.kill()
        process.join(20)
        assert process.exitcode == -signal.SIGKILL
        await check_invariants(tmp_path / "data", acknowledged)
    assert len(acknowledged.read_text().split()) > 8


async def test_a_second_process_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    ready = SPAWN.Event()
    holder = child(hold_open, tmp_path, ready)
    try:
        assert ready.wait(20)
        with pytest.raises(FolderInUse, match=f"{tmp_path}.*{holder.pid}.*Stop that server"):
            await Database.open(tmp_path)
    finally:
        holder.kill()
        holder.join(20)
    async with opened(tmp_path):
        pass


async def test_a_second_database_in_one_process_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(FolderInUse):
            await Database.open(tmp_path)
    async with opened(tmp_path):
        pass
