"""A full disk: a typed error, nothing half written, reads still answered, work goes on once there is room."""

import errno
import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

import server.jobs.backoff
import server.jobs.runs
import server.room
from server.room import NO_ROOM
from storage.errors import DiskFull
from storage.files import MediaFiles
from storage.jobs import JobStore
from tests.fake_server import PATIENCE, FakeServer, eventually, serving
from tests.storage_fakes import child, new_image, new_job, opened, save

pytestmark = pytest.mark.anyio


async def test_a_full_disk_stops_writes_not_reads_and_heals(small_disk: Path) -> None:
    filler = small_disk / "filler"
    async with opened(small_disk / "data") as database:
        jobs = JobStore(database)
        first = await jobs.insert(new_job())
        fill(filler)
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


def fill(filler: Path, leave: int = 0) -> None:
    """Leave so many bytes of a file system free."""
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(64_000))
    os.truncate(filler, filler.stat().st_size - leave)


def queued(fake: FakeServer, **fields: Any) -> str:
    answer = httpx.post(f"{fake.url}/api/v1/images/generate", json={"prompt": "a hat"} | fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["data"]["job_id"])


def look(fake: FakeServer, job: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{fake.url}/api/v1/jobs/{job}").json()["data"]
    return found


def completed(fake: FakeServer, job: str) -> dict[str, Any]:
    eventually(lambda: look(fake, job)["status"] == "completed")
    return look(fake, job)


def test_below_the_room_to_be_kept_no_work_is_taken_and_above_it_is_again(disk: Path) -> None:
    filler = disk / "filler"
    with serving(disk / "data", min_free="4MB") as fake:
        failed = queued(fake)
        httpx.post(f"{fake.url}/api/v1/jobs/{failed}/cancel")
        completed(fake, done := queued(fake, seed=7))
        fill(filler, leave=3_000_000)
        answers = [fake.post(), httpx.post(f"{fake.url}/api/v1/images/generate", json={"prompt": "a hat"})]
        answers.append(httpx.post(f"{fake.url}/api/v1/jobs/{failed}/retry"))
        for answer in answers:
            assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0, answer.text
            assert answer.json()["error"]["code"] == "disk_full" and "4 MB are kept" in answer.text
        assert len(fake.statuses) == 2, "no row was written"
        ready = httpx.get(fake.url + "/ready")
        assert ready.status_code == 503 and "MB free" in ready.json()["missing"]["disk"]
        assert look(fake, done)["status"] == "completed"
        assert httpx.get(fake.url + look(fake, done)["resultImages"][0]["imageUrl"]).status_code == 200
        filler.unlink()
        assert httpx.get(fake.url + "/ready").status_code == 200
        assert fake.post().status_code == 200


def test_nothing_is_begun_while_the_last_room_is_wanted(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.room, "LOOK_SECONDS", 0.02)
    filler = disk / "filler"
    with serving(disk / "data", min_free="4MB") as fake:
        httpx.post(f"{fake.url}/api/v1/queue/pause")
        job = queued(fake)
        fill(filler, leave=300_000)
        pauses = fake.app.state.services.scheduler.pauses
        eventually(lambda: NO_ROOM in pauses)
        httpx.post(f"{fake.url}/api/v1/queue/resume")
        assert look(fake, job)["currentStep"] == NO_ROOM
        assert not fake.engine.batches
        filler.unlink()
        completed(fake, job)


def test_a_job_that_finds_the_disk_full_waits_for_room_and_loses_no_attempt(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.jobs.backoff, "ROOM_SECONDS", 0.05)
    monkeypatch.setattr(server.jobs.runs, "BACKOFF_SECONDS", 0.05)
    postpone, asked = JobStore.postpone, []

    async def postponing(store: JobStore, job_id: str, *arguments: Any, **options: Any) -> Any:
        asked.append(job_id)
        return await postpone(store, job_id, *arguments, **options)

    monkeypatch.setattr(JobStore, "postpone", postponing)
    filler = disk / "filler"
    with serving(disk / "data", min_free="0") as fake:
        fake.engine.gates["finish"].close()
        job = queued(fake, n=2)
        assert fake.engine.gates["finish"].reached.wait(PATIENCE)
        fill(filler)
        assert fake.post().json()["error"]["code"] == "disk_full", "nor does the database have room"
        fake.engine.open()
        eventually(lambda: asked.count(job) >= 5)  # not even that it is to wait can be written
        assert not list((fake.data / "media").rglob("*.part"))
        filler.unlink()
        found = completed(fake, job)
        assert (found["attempts"], len(found["resultImages"])) == (1, 2)
        fake.check_consistent()


def test_a_picture_that_finds_no_room_beside_one_that_did_is_made_again_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits, so nobody is served by half of a job."""
    monkeypatch.setattr(server.jobs.backoff, "ROOM_SECONDS", 0.01)
    keep, full = server.jobs.runs.keep, [1] * 4

    def keeping(files: Any, order: Any, index: int, *rest: Any) -> Any:
        if index == 1 and full:
            full.pop()
            raise DiskFull
        return keep(files, order, index, *rest)

    monkeypatch.setattr(server.jobs.runs, "keep", keeping)
    with serving(tmp_path) as fake:
        found = completed(fake, queued(fake, n=2))
        assert (found["attempts"], len(found["resultImages"]), full) == (1, 2, [])
        fake.check_consistent()


@pytest.mark.parametrize(("failures", "status"), [(1, 200), (1000, 503)])
def test_a_picture_that_cannot_be_synced_is_written_once_more_and_never_acknowledged_unsynced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, status: int
) -> None:
    sync, left = os.fsync, [errno.EIO] * failures

    def failing(descriptor: int) -> None:
        if left:
            raise OSError(left.pop(), "planted")
        sync(descriptor)

    with serving(tmp_path) as fake:
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", failing)
            answer = fake.post()
        assert answer.status_code == status
        if status != 200:
            assert answer.json()["error"]["code"] == "disk_fault"
            assert answer.headers["x-should-retry"] == "false"
        assert fake.statuses == ["completed" if status == 200 else "failed"]
        fake.check_consistent()
        assert fake.post().status_code == 200
