"""The life of a job: which changes are allowed, in which order jobs are due, and what a new run recovers."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from storage.errors import IllegalTransition, JobNotFound
from storage.images import ImageStore
from storage.jobs import JobStore
from storage.records import MAXIMUM_SEED, JobRecord, JobStatus, Recovered
from storage.transitions import TRANSITIONS
from tests.storage_fakes import new_image, new_job, opened

pytestmark = pytest.mark.anyio

Verb = Callable[[JobStore, str], Awaitable[JobRecord]]

VERBS: dict[JobStatus, Verb] = {
    JobStatus.PENDING: lambda jobs, id: jobs.requeue(id, "the device hangs", lost=True),
    JobStatus.PROCESSING: lambda jobs, id: jobs.start(id, "boot"),
    JobStatus.COMPLETED: lambda jobs, id: jobs.complete(id, "boot", [new_image()]),
    JobStatus.FAILED: lambda jobs, id: jobs.fail(id, "out_of_memory", "too large"),
    JobStatus.CANCELLED: lambda jobs, id: jobs.cancel("ann", id),
}
WAYS_TO: dict[JobStatus, list[JobStatus]] = {
    JobStatus.PENDING: [],
    JobStatus.PROCESSING: [JobStatus.PROCESSING],
    JobStatus.COMPLETED: [JobStatus.PROCESSING, JobStatus.COMPLETED],
    JobStatus.FAILED: [JobStatus.PROCESSING, JobStatus.FAILED],
    JobStatus.CANCELLED: [JobStatus.CANCELLED],
}


async def test_a_job_comes_back_as_it_was_given(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    given = new_job(
        session_id="s",
        priority=-3,
        request={"prompt": "灯台 🗼", "nested": [1, {"a": None}]},
        prompt="灯台 🗼 \x00 'quoted' \"",
        negative_prompt="ж",
        image_count=4,
        user="u",
        safety_identifier="x",
    )
    async with opened(tmp_path) as database:
        inserted = await JobStore(database).insert(given)
    async with opened(tmp_path) as database:
        read = await JobStore(database).get("ann", inserted.id)
    assert read == inserted
    assert {name: getattr(read, name) for name in vars(given)} == vars(given)
    assert (read.status, read.attempts, read.max_attempts, read.cost) == (JobStatus.PENDING, 0, 3, 0.0)
    assert before <= read.created_at <= datetime.now(UTC)
    assert read.created_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("source", JobStatus)
@pytest.mark.parametrize("target", VERBS)
async def test_only_the_allowed_transitions_happen(tmp_path: Path, source: JobStatus, target: JobStatus) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        job = await jobs.insert(new_job())
        for step in WAYS_TO[source]:
            job = await VERBS[step](jobs, job.id)
        assert job.status is source
        if target is JobStatus.PENDING and source in (JobStatus.FAILED, JobStatus.CANCELLED):
            assert (await jobs.retry("ann", job.id)).status is target
        elif target in TRANSITIONS[source]:
            assert (await VERBS[target](jobs, job.id)).status is target
        else:
            with pytest.raises(IllegalTransition, match=f"^Job {job.id} is {source}; only .* can "):
                await VERBS[target](jobs, job.id)
            assert await jobs.get("ann", job.id) == job


@pytest.mark.parametrize("target", VERBS)
async def test_an_unknown_job_is_not_found(tmp_path: Path, target: JobStatus) -> None:
    async with opened(tmp_path) as database:
        with pytest.raises(JobNotFound, match="nobody"):
            await VERBS[target](JobStore(database), "nobody")


async def test_another_owner_sees_and_cancels_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        job = await jobs.insert(new_job())
        with pytest.raises(JobNotFound):
            await jobs.get("bob", job.id)
        with pytest.raises(JobNotFound):
            await jobs.cancel("bob", job.id)
        assert await jobs.get("ann", job.id) == job


async def test_completion_writes_the_images_and_the_job_together(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs, images = JobStore(database), ImageStore(database)
        job = await jobs.insert(new_job(session_id="s", image_count=2))
        started = await jobs.start(job.id, "boot")
        assert (started.attempts, started.boot_id) == (1, "boot")
        given = [new_image(index=1, seed=MAXIMUM_SEED), new_image(index=0, seed=0)]
        done = await jobs.complete(job.id, "boot", given)
        assert (done.status, done.cost, done.error_code) == (JobStatus.COMPLETED, 0.5, None)
        assert done.started_at and done.finished_at and done.started_at <= done.finished_at
        assert await jobs.get("ann", job.id) == done
        found = await images.of_job("ann", job.id)
        assert [image.id for image in found] == [given[1].id, given[0].id]
        assert {(image.owner_id, image.session_id, image.job_id) for image in found} == {("ann", "s", job.id)}
        assert {name: getattr(found[1], name) for name in vars(given[0])} == vars(given[0])
        assert await images.of_job("bob", job.id) == []


async def test_a_failed_completion_leaves_neither_images_nor_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        job = await jobs.insert(new_job(image_count=2))
        started = await jobs.start(job.id, "boot")
        for bad in ([new_image(), new_image()], [new_image(seed=MAXIMUM_SEED + 1)], [new_image(seed=-1)]):
            with pytest.raises(IntegrityError):  # two images of one index; seeds out of bounds
                await jobs.complete(job.id, "boot", bad)
        assert await jobs.get("ann", job.id) == started
        assert (await ImageStore(database).history("ann", 1, 10)).total == 0


async def test_only_the_run_that_took_a_job_completes_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        job = await jobs.insert(new_job())
        await jobs.start(job.id, "boot 1")
        with pytest.raises(IllegalTransition):
            await jobs.complete(job.id, "boot 2", [new_image()])
        assert (await ImageStore(database).history("ann", 1, 10)).total == 0


async def test_a_partial_result_is_completed_and_says_what_is_missing(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        job = await jobs.insert(new_job(image_count=3))
        await jobs.start(job.id, "boot")
        await jobs.complete(
            job.id, "boot", [new_image()], error_code="not_finite", error_message="2 of 3 images failed"
        )
        read = await jobs.get("ann", job.id)
        assert (read.status, read.error_code, read.error_message) == (
            JobStatus.COMPLETED,
            "not_finite",
            "2 of 3 images failed",
        )


async def test_the_queue_is_by_priority_then_age(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        for prompt, priority in (("old", 0), ("urgent", 5), ("new", 0), ("whenever", -1), ("urgent too", 5)):
            await jobs.insert(new_job(prompt=prompt, priority=priority, owner_id=prompt))
        taken = await jobs.insert(new_job(prompt="taken", priority=9))
        await jobs.start(taken.id, "boot")
        order = [job.prompt for job in await jobs.pending()]
        assert order == ["urgent", "urgent too", "old", "new", "whenever"]


async def test_recovery_requeues_what_dead_runs_left_and_nothing_else(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        names = ("left", "mine", "waiting")
        left, mine, waiting = [await jobs.insert(new_job(prompt=name, attached=False)) for name in names]
        attended, waited = await jobs.insert(new_job()), await jobs.insert(new_job())
        for dead in (left, attended):
            await jobs.start(dead.id, "boot 1")
        running = await jobs.start(mine.id, "boot 2")
        assert await jobs.recover("boot 2") == Recovered(requeued=1, failed=2)
        for job in (attended, waited):
            failed = await jobs.get("ann", job.id)
            assert (failed.status, failed.error_code) == (JobStatus.FAILED, "interrupted"), "its client is gone"
        assert await jobs.get("ann", mine.id) == running
        first, second = await jobs.pending()
        assert (first.id, first.attempts, first.boot_id, first.started_at) == (left.id, 1, None, None)
        assert second == waiting


async def test_a_job_that_kills_every_run_fails_after_its_last_attempt(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        job = await jobs.insert(new_job(attached=False))
        for attempt in (1, 2, 3):
            assert (await jobs.start(job.id, f"boot {attempt}")).attempts == attempt
            last = attempt == job.max_attempts
            expected = Recovered(requeued=0, failed=1) if last else Recovered(requeued=1, failed=0)
            assert await jobs.recover(f"boot {attempt + 1}") == expected
        failed = await jobs.get("ann", job.id)
        assert (failed.status, failed.error_code) == (JobStatus.FAILED, "interrupted")
        assert failed.finished_at is not None
        nothing = await jobs.recover("boot 5")
    assert nothing == Recovered(requeued=0, failed=0)
    assert str(nothing) == "0 unfinished jobs to be tried again and 0 that failed with them"


async def test_a_lost_engine_spends_no_attempt_and_is_counted(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        under_way, waiting = [await jobs.insert(new_job()) for _ in range(2)]
        await jobs.start(under_way.id, "boot 1")
        for job, losses in ((under_way, 1), (waiting, 0)):
            left = await jobs.requeue(job.id, "the device hangs", lost=True)
            assert left == await jobs.get("ann", job.id)
            assert (left.status, left.attempts, left.losses) == (JobStatus.PENDING, 0, losses)
            assert (left.error_code, left.error_message) == ("engine_lost", "the device hangs")
            assert (left.boot_id, left.started_at, left.finished_at) == (None, None, None)
        assert await jobs.pending() == [await jobs.get("ann", job.id) for job in (under_way, waiting)]
        await jobs.start(under_way.id, "boot 2")
        done = await jobs.complete(under_way.id, "boot 2", [new_image()])
        assert (done.status, done.attempts, done.error_code) == (JobStatus.COMPLETED, 1, None)


async def test_a_job_under_which_every_engine_is_lost_fails_at_last(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        job = await jobs.insert(new_job())
        for time in (1, 2, 3):
            await jobs.start(job.id, f"boot {time}")
            job = await jobs.requeue(job.id, "the device hangs", lost=True)
            assert (job.status, job.losses) == (JobStatus.FAILED if time == 3 else JobStatus.PENDING, time)
        assert job.error_code == "engine_lost" and "each of the 3 times" in (job.error_message or "")
        assert job.finished_at is not None


async def test_a_stop_leaves_a_job_to_the_next_run_without_counting_it_as_a_loss(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        job = await jobs.insert(new_job())
        for boot in "abcde":
            await jobs.start(job.id, boot)
            left = await jobs.requeue(job.id, "the server stops", lost=False)
            assert (left.status, left.attempts, left.losses) == (JobStatus.PENDING, 0, 0)
