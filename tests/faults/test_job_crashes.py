"""Kill -9 at named points and at random moments: no accepted job is lost, none is done twice, files and rows agree."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.job_lists import JobLists
from storage.records import JobQuery, JobStatus
from tests.faults.dying_server import POINTS, serve_and_die
from tests.storage_fakes import check_invariants, child, opened

pytestmark = pytest.mark.anyio

KILLS = int(os.environ.get("DARKROOM_TEST_KILLS", "12"))
"""How often a server is killed at a random moment."""

PATIENCE = 60


def run_to_the_end(folder: Path, acknowledged: Path) -> None:
    process = child(serve_and_die, folder, acknowledged, "", 0)
    process.join(PATIENCE)
    assert process.exitcode == 0


async def check(folder: Path, acknowledged: Path) -> dict[JobStatus, int]:
    """Each accepted job has its end, with its pictures or with a reason; how many came to which."""
    await check_invariants(folder, acknowledged)
    accepted = acknowledged.read_text().split()
    async with opened(folder) as database:
        page = await JobLists(database).page(JobQuery(owner_id="ann", limit=100_000))
    assert set(accepted) <= {job.id for job in page.jobs} and len(set(accepted)) == len(accepted)
    assert all(job.finished_at for job in page.jobs)
    assert {job.error_code for job in page.jobs if job.status is JobStatus.FAILED} <= {"interrupted"}
    return {status: sum(job.status is status for job in page.jobs) for status in JobStatus}


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_a_named_point(tmp_path: Path, point: str) -> None:
    folder, acknowledged = tmp_path / "data", tmp_path / "acknowledged"
    acknowledged.touch()
    for _ in range(2):
        process = child(serve_and_die, folder, acknowledged, point, 6)
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL
    run_to_the_end(folder, acknowledged)
    found = await check(folder, acknowledged)
    assert found[JobStatus.COMPLETED] >= len(acknowledged.read_text().split()) > 0
    assert found[JobStatus.FAILED] == 0


@pytest.mark.timeout(180 + 10 * KILLS)
async def test_killed_at_random_moments(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    folder, acknowledged = tmp_path / "data", tmp_path / "acknowledged"
    acknowledged.touch()
    chance = random.Random(1)
    for _ in range(KILLS):
        before = acknowledged.stat().st_size
        process = child(serve_and_die, folder, acknowledged, "", 1000)
        while process.is_alive() and acknowledged.stat().st_size == before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.15))
        process.kill()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL
    run_to_the_end(folder, acknowledged)
    found = await check(folder, acknowledged)
    ends = ", ".join(f"{count} {status}" for status, count in found.items() if count)
    record_property("told", f"{KILLS} times killed, {len(acknowledged.read_text().split())} jobs accepted: {ends}")
