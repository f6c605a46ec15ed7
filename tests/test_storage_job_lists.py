"""Jobs found in numbers, clients' keys, switches, and the changes that a job's owner may ask for."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage import client_keys
from storage.errors import IllegalTransition, JobEnded, JobNotFound, KeyReused
from storage.job_lists import JobLists
from storage.jobs import JobStore
from storage.records import ClientKey, JobQuery, JobRecord, JobStatus
from storage.switches import Switches
from tests.storage_fakes import new_image, new_job, opened

pytestmark = pytest.mark.anyio

KEY = ClientKey("key", "digest")


async def test_pages_follow_each_other_without_gap_or_double_while_others_come(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs, lists = JobStore(database), JobLists(database)
        inserted = [await jobs.insert(new_job(session_id="ab"[number % 2])) for number in range(9)]
        await jobs.insert(new_job(owner_id="bob"))
        found: list[JobRecord] = []
        cursor = None
        for total in (9, 10, 11):
            page = await lists.page(JobQuery(owner_id="ann", limit=3, cursor=cursor))
            assert page.total == total
            found += page.jobs
            cursor = page.cursor
            await jobs.insert(new_job())  # newer than the pages that are still to come
        assert cursor is None and [job.id for job in found] == [job.id for job in inserted[::-1]]
        of_a = await lists.page(JobQuery(owner_id="ann", session_id="a", limit=100))
        assert {job.session_id for job in of_a.jobs} == {"a"} and of_a.total == 5
        everybody = await lists.page(JobQuery(owner_id=None, limit=100))
        assert everybody.total == 13


async def test_another_owners_job_is_no_cursor_and_not_among_some(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs, lists = JobStore(database), JobLists(database)
        mine, theirs = await jobs.insert(new_job()), await jobs.insert(new_job(owner_id="bob"))
        with pytest.raises(JobNotFound):
            await lists.page(JobQuery(owner_id="ann", cursor=theirs.id))
        assert set(await lists.some("ann", [mine.id, theirs.id, "nobody"])) == {mine.id}
        assert set(await lists.some(None, [mine.id, theirs.id])) == {mine.id, theirs.id}


async def test_what_ended_since_a_moment_is_found_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs, lists = JobStore(database), JobLists(database)
        first, second, _ = [await jobs.insert(new_job()) for _ in range(3)]
        await jobs.cancel("ann", first.id)
        moment = datetime.now(UTC)
        await jobs.cancel("ann", second.id)
        everything = await lists.ended_since("ann", moment - timedelta(hours=1), 10)
        assert [job.id for job in everything] == [first.id, second.id]
        assert [job.id for job in await lists.ended_since("ann", moment, 10)] == [second.id]
        assert await lists.ended_since("bob", moment, 10) == []


async def test_a_key_stands_for_one_job_of_one_owner_and_one_request(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        assert await jobs.foresee(new_job(), KEY) is None
        job = await jobs.insert(new_job(), KEY)
        assert await jobs.insert(new_job(prompt="sent again"), KEY) == job == await jobs.foresee(new_job(), KEY)
        with pytest.raises(KeyReused, match=job.id):
            await jobs.insert(new_job(), ClientKey("key", "another digest"))
        assert (await jobs.insert(new_job(owner_id="bob"), KEY)).id != job.id
        assert (await JobLists(database).page(JobQuery(owner_id=None))).total == 2


async def test_a_key_is_forgotten_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        job = await jobs.insert(new_job(), KEY)
        monkeypatch.setattr(client_keys, "REMEMBERED", timedelta(0))
        again = await jobs.insert(new_job(), ClientKey("key", "another digest"))
        assert again.id != job.id


async def test_a_job_is_tried_again_as_if_it_had_never_been(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        job = await jobs.insert(new_job())
        await jobs.start(job.id, "boot")
        await jobs.fail(job.id, "disk_full", "no room")
        for owner in ("bob", "nobody"):
            with pytest.raises(JobNotFound):
                await jobs.retry(owner, job.id)
        again = await jobs.retry("ann", job.id)
        assert (again.status, again.attempts, again.error_code, again.attached) == (JobStatus.PENDING, 0, None, False)
        assert (again.started_at, again.finished_at, again.boot_id) == (None, None, None)
        with pytest.raises(IllegalTransition):
            await jobs.retry("ann", job.id)
        await jobs.start(job.id, "boot")
        await jobs.complete(job.id, "boot", [new_image()], outcome={"seconds": 1})
        assert (await jobs.get("ann", job.id)).outcome == {"seconds": 1}


async def test_a_postponed_job_keeps_the_attempt_it_spent(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        job = await jobs.insert(new_job(attached=False))
        await jobs.start(job.id, "boot")
        due = datetime.now(UTC) + timedelta(seconds=5)
        later = await jobs.postpone(job.id, due, "disk_full", "no room")
        assert (later.status, later.attempts, later.due_at) == (JobStatus.PENDING, 1, due)
        assert (await jobs.start(job.id, "boot")).attempts == 2


async def test_the_line_goes_by_priority_then_by_who_was_moved_last_then_by_age(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        a, b, c, d = [await jobs.insert(new_job(priority=priority)) for priority in (0, 0, 0, 1)]
        await jobs.change("ann", b.id, to_front=True)
        await jobs.change("ann", c.id, to_front=True)
        assert [job.id for job in await jobs.pending()] == [d.id, c.id, b.id, a.id]
        await jobs.change("ann", a.id, priority=2)
        assert [job.id for job in await jobs.pending()] == [a.id, d.id, c.id, b.id]
        with pytest.raises(JobNotFound):
            await jobs.change("bob", a.id, priority=5)
        await jobs.cancel("ann", a.id)
        with pytest.raises(JobEnded, match="cancelled"):
            await jobs.change("ann", a.id, priority=5)


async def test_clearing_cancels_what_waits_of_one_owner_or_of_all(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        running, mine, theirs = [await jobs.insert(new_job(owner_id=owner)) for owner in ("ann", "ann", "bob")]
        await jobs.start(running.id, "boot")
        assert await jobs.clear("ann") == [mine.id]
        assert (await jobs.get("bob", theirs.id)).status is JobStatus.PENDING
        assert await jobs.clear(None) == [theirs.id]
        assert (await jobs.get("ann", running.id)).status is JobStatus.PROCESSING


async def test_a_switch_is_off_until_it_is_turned_on_and_stays_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        switches = Switches(database)
        assert await switches.get("paused") is False
        await switches.set("paused", True)
    async with opened(tmp_path) as database:
        switches = Switches(database)
        assert await switches.get("paused") is True and await switches.get("other") is False
        await switches.set("paused", False)
        assert await switches.get("paused") is False
