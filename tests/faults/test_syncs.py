"""What power cuts cannot take: every commit reaches the disk before it is acknowledged, counted at the system calls."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from storage.files import MediaFiles
from storage.jobs import JobStore
from tests.storage_fakes import new_image, new_job, opened, save

ROOT = Path(__file__).parent.parent.parent


def work(folder: Path, commits: int, pictures: int) -> None:
    """Commit so often, one after the other, and save so many pictures."""

    async def run() -> None:
        async with opened(folder) as database:
            for _ in range(commits):
                await JobStore(database).insert(new_job())
        for _ in range(pictures):
            save(MediaFiles(folder), new_image())

    asyncio.run(run())


def syncs(folder: Path, commits: int, pictures: int) -> dict[str, int]:
    """How often which system call was made, of a process that works so."""
    code = f"from pathlib import Path; from {__name__} import work; work(Path({str(folder)!r}), {commits}, {pictures})"
    calls = folder.with_suffix(".calls")
    command = ["strace", "-f", "-qq", "-e", "trace=fdatasync,fsync", "-e", "signal=none", "-o", str(calls)]
    done = subprocess.run(
        [*command, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"strace is not permitted here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    lines = calls.read_text().splitlines()
    return {name: sum(f" {name}(" in line for line in lines) for name in ("fdatasync", "fsync")}


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here to count system calls with")
def test_every_commit_and_every_picture_is_synced(tmp_path: Path) -> None:
    few, many = syncs(tmp_path / "few", 5, 1), syncs(tmp_path / "many", 45, 3)
    assert many["fdatasync"] - few["fdatasync"] >= 40, "a sync for each commit"
    # The picture, its thumbnail, and the folder of each.
    assert many["fsync"] - few["fsync"] >= 2 * 4
