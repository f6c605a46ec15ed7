"""A full disk: a typed error, nothing half written, reads still answered, work goes on once there is room."""

import resource
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from storage.errors import DiskFull
from storage.files import MediaFiles
from storage.jobs import JobStore
from tests.storage_fakes import child, new_image, new_job, opened, save

pytestmark = pytest.mark.anyio


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_stops_writes_not_reads_and_heals(small_disk: Path) -> None:
    filler = small_disk / "filler"
    async with opened(small_disk / "data") as database:
        jobs = JobStore(database)
        first = await jobs.insert(new_job())
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(64_000))
        with pytest.raises(DiskFull):
            for _ in range(50):
                await jobs.insert(new_job(prompt="x" * 30_000))
        assert await jobs.get("ann", first.id) == first
        accepted = await jobs.pending()
        filler.unlink()
        await jobs.insert(new_job(prompt="x" * 30_000))
        assert len(await jobs.pending()) == len(accepted) + 1


def test_a_full_disk_leaves_no_picture_behind(small_disk: Path) -> None:
    files = MediaFiles(small_disk)
    with pytest.raises(DiskFull):
        save(files, new_image(), bytes(3_000_000))
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    save(files, new_image(), bytes(1_000_000))


def _save_under_a_limit(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with pytest.raises(DiskFull):
        save(MediaFiles(folder), new_image(), bytes(1_000_000))
    save(MediaFiles(folder), new_image(), bytes(50_000))


def test_a_file_size_limit_counts_as_a_full_disk(tmp_path: Path) -> None:
    process = child(_save_under_a_limit, tmp_path)
    process.join(20)
    assert process.exitcode == 0
    sizes = sorted(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert sizes == [len(b"thumbnail"), 50_000]
