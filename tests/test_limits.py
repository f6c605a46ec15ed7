"""What each owner may ask for: requests and work in an hour, jobs that wait, jobs at work; and how it is told."""

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI, RateLimitError

import server.identity.gate
from pipelines.catalog import Catalog
from pipelines.errors import ImageFailed
from pipelines.pricing import Price
from pipelines.request import BatchKey
from server.identity.caller import LOCAL, Caller
from server.limits import spelled
from server.scheduling.policy import Turn, in_turn
from storage.admissions import HOUR, Admissions, wait
from storage.errors import LimitReached
from storage.jobs import JobStore
from storage.records import ClientKey, JobRecord, Terms
from storage.schema import DATABASE_NAME
from tests.fake_server import PATIENCE, GatedEngine, serving
from tests.fakes import entry
from tests.storage_fakes import new_job, opened
from tests.test_job_routes import call, ended, submit

ANN = Caller("ann", key_id="key 1")
TEN = Terms(requests=10)


@pytest.fixture
def ann(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is Ann, who is no operator."""
    become(monkeypatch, ANN)


def priced(price: str) -> Catalog:
    return Catalog({"fake": entry(price=Price(Decimal(price)))}, "fake", Path("models.toml"))


def become(monkeypatch: pytest.MonkeyPatch, caller: Caller) -> None:
    monkeypatch.setattr(server.identity.gate, "LOCAL", caller)


def age(folder: Path, minutes: float) -> None:
    """Let everything have been handed in so much earlier."""
    with sqlite3.connect(folder / DATABASE_NAME) as connection:
        connection.execute("UPDATE admissions SET created_at = created_at - ?", (int(minutes * 60e6),))
    connection.close()


# The hour, in the database.


def test_how_long_until_there_is_room() -> None:
    now = datetime.now(UTC)
    taken = [(now - timedelta(minutes=minutes), amount) for minutes, amount in ((50, 3), (20, 1), (5, 6))]
    assert wait(taken, 11, 1, now) == 0
    assert wait(taken, 10, 1, now) == wait(taken, 10, 3, now) == 10 * 60
    assert wait(taken, 10, 4, now) == 40 * 60 and wait(taken, 10, 10, now) == 55 * 60
    assert wait(taken, 10, 11, now) == inf
    assert wait(taken, 2, 1, now) == 55 * 60, "a limit that was lowered"
    assert wait([], 1, 1, now) == 0


async def hand_in(jobs: JobStore, count: int, terms: Terms = TEN, **changes: Any) -> list[Exception]:
    """Hand in several at once; the refusals."""
    calls = [jobs.insert(new_job(**changes), terms=terms) for _ in range(count)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, JobRecord | LimitReached) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Exception)]


@pytest.mark.anyio
async def test_of_fifty_at_once_exactly_as_many_as_are_left_are_taken(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        refused = await hand_in(JobStore(database), 50)
        assert len(refused) == 40
        assert len(await JobStore(database).pending()) == 10, "and the others have no row"
        assert "Your limit is 10 requests an hour. Try again in 60 minutes." in str(refused[0])
        assert len(await hand_in(JobStore(database), 1, owner_id="bob")) == 0, "another owner has an hour of its own"
        assert len(await hand_in(JobStore(database), 5, Terms())) == 0, "no limit"


@pytest.mark.anyio
async def test_the_hour_slides_and_outlasts_the_server(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        assert len(await hand_in(JobStore(database), 6)) == 0
    age(tmp_path, 59)
    async with opened(tmp_path) as database:
        (refusal,) = await hand_in(JobStore(database), 5)
        assert isinstance(refusal, LimitReached) and refusal.seconds is not None and 50 < refusal.seconds <= 60
    age(tmp_path, 1.01)
    async with opened(tmp_path) as database:
        assert len(await hand_in(JobStore(database), 7)) == 1
        standing = await Admissions(database).standing("ann")
        assert standing.requests == 10 and standing.clear_at is not None
        assert HOUR - timedelta(minutes=1) < standing.clear_at - datetime.now(UTC) <= HOUR
        assert standing.queued == 16


@pytest.mark.anyio
async def test_trying_again_counts_and_asking_twice_does_not(tmp_path: Path) -> None:
    key = ClientKey("k", "digest")
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        first = await jobs.insert(new_job(), key, Terms(requests=2))
        for _ in range(5):
            assert (await jobs.insert(new_job(), key, Terms(requests=2))).id == first.id
            assert await jobs.foresee(new_job(), key, Terms(requests=2)) == first
        await jobs.cancel("ann", first.id)
        await jobs.retry("ann", first.id, Terms(requests=2))
        cancelled = await jobs.cancel("ann", first.id)
        with pytest.raises(LimitReached):
            await jobs.retry("ann", first.id, Terms(requests=2))
        assert await jobs.get("ann", first.id) == cancelled


@pytest.mark.anyio
async def test_work_in_an_hour(tmp_path: Path) -> None:
    terms = Terms(pixel_steps=1000)
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        assert len(await hand_in(jobs, 5, terms, pixel_steps=300)) == 2
        assert len(await hand_in(jobs, 1, terms, pixel_steps=100)) == 0
        (endless,) = await hand_in(jobs, 1, terms, pixel_steps=1001)
    assert isinstance(endless, LimitReached) and endless.seconds is None
    assert "has 1,001 pixel steps" in str(endless) and "your limit is 1,000 an hour" in str(endless)


@pytest.mark.anyio
async def test_jobs_that_wait(tmp_path: Path) -> None:
    terms = Terms(queued=3, patience=7)
    async with opened(tmp_path) as database:
        jobs = JobStore(database)
        refused = await hand_in(jobs, 5, terms)
        assert [getattr(error, "seconds", None) for error in refused] == [7, 7]
        waiting = await jobs.pending()
        await jobs.start(waiting[0].id, "boot")
        assert len(await hand_in(jobs, 2, terms)) == 1
        await jobs.cancel("ann", waiting[1].id)
        await jobs.retry("ann", waiting[1].id, terms)


# Jobs at work.


class Image:
    """As the policy sees it."""

    rows, evaluations_left, shares, pressing = 1, 4, 0.0, False
    key = BatchKey("fake@0", 64, 64)

    def __init__(self, order: int, job: str, *, begun: bool = False, priority: int = 0, owner: str = "ann") -> None:
        self.order, self.begun, self.priority = order, begun, priority
        self.turn = Turn(owner, job, 2) if owner else None


def orders(*images: Image) -> list[int]:
    return [image.order for image in in_turn(images)]


def test_as_many_jobs_of_an_owner_are_at_work_as_may_be() -> None:
    assert orders(Image(1, "a"), Image(2, "b"), Image(3, "c"), Image(4, "a")) == [1, 2, 4], "the eldest first"
    assert orders(Image(1, "a"), Image(2, "b"), Image(3, "c", begun=True), Image(4, "c")) == [1, 3, 4]
    assert orders(Image(1, "a"), Image(2, "b", begun=True), Image(3, "c", begun=True)) == [2, 3]
    assert orders(Image(1, "a"), Image(2, "b"), Image(3, "c", priority=5)) == [1, 3], "the more urgent first"
    assert orders(*(Image(number, str(number), owner="") for number in range(5))) == [0, 1, 2, 3, 4], "no bound"
    mixed = [Image(number, str(number), owner="ann" if number % 2 else "bob") for number in range(8)]
    assert orders(*mixed) == [0, 1, 2, 3]


def test_further_jobs_wait_in_line_and_nobody_is_refused(tmp_path: Path, ann: None) -> None:
    engine = GatedEngine()
    with serving(tmp_path, engine) as fake:
        engine.gates["step"].close()
        jobs = [submit(fake, n=2, steps=5, seed=10 * number) for number in range(8)]
        engine.open()
        for job in jobs:
            ended(fake, job)
    batches = [{image.seed // 10 for image in batch} for batch in engine.batches]
    spans = [[index for index, batch in enumerate(batches) if job in batch] for job in range(8)]
    together = [sum(span[0] <= index <= span[-1] for span in spans) for index in range(len(batches))]
    assert max(together) == 2


def test_one_who_waits_for_its_owner_s_turn_brings_no_model(tmp_path: Path, ann: None) -> None:
    """Else the model would be loaded in vain, or drain the one at work for the sake of a job that may not begin."""
    engine = GatedEngine(resident_limit=1)
    with serving(tmp_path, engine, jobs_at_once=1) as fake:
        engine.gates["step"].close()
        submit(fake, n=2, seed=1)
        assert engine.gates["step"].reached.wait(PATIENCE)
        other = submit(fake, model="other", seed=3)
        engine.open()
        ended(fake, other)
    assert (engine.loads, engine.refused) == (["fake", "other"], 0)
    assert [{image.seed for image in batch} for batch in engine.batches] == [{1, 2}] * 4 + [{3}] * 4


def test_a_job_that_a_later_run_carries_out_still_has_its_owner_s_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as fake:
        call(fake, "POST", "/queue/pause")
        operators = submit(fake)
        become(monkeypatch, ANN)
        anns = submit(fake)
    with serving(tmp_path) as again:
        turns = [ticket.turn for ticket in again.app.state.services.scheduler.line.tickets]
        assert turns == [None, Turn("ann", anns, 2)]
        ended(again, anns, "pending")
        become(monkeypatch, LOCAL)
        call(again, "POST", "/queue/resume")
        ended(again, operators)


# Over HTTP.


def remaining(answer: httpx.Response) -> tuple[str | None, ...]:
    names = ("limit", "remaining", "reset")
    return tuple(answer.headers.get(f"x-ratelimit-{name}-requests") for name in names)


def test_what_is_left_is_told_and_what_is_too_much_is_refused(tmp_path: Path, ann: None) -> None:
    with serving(tmp_path, requests_per_hour=4) as fake:
        assert remaining(fake.post()) == ("4", "3", "1h0m0s")
        queued = httpx.post(fake.url + "/api/v1/images/generate", json={"prompt": "a hat"})
        assert (queued.status_code, *remaining(queued)) == (202, "4", "2", "1h0m0s")
        keyed = fake.post_keyed({"Idempotency-Key": "k"})
        assert remaining(keyed)[1] == remaining(fake.post_keyed({"Idempotency-Key": "k"}))[1] == "1"
        fake.engine.failing["step doomed"] = ImageFailed("planted")
        assert fake.post(prompt="doomed").status_code == 500
        doomed = fake.rows("SELECT id FROM jobs WHERE status = 'failed'")[0][0]
        before = fake.rows("SELECT * FROM jobs")
        with OpenAI(base_url=fake.url + "/v1", api_key="-") as client, pytest.raises(RateLimitError) as refused:
            began = time.monotonic()
            client.images.generate(prompt="a hat")
        assert time.monotonic() - began < PATIENCE, "it was not repeated after an hour, nor at all"
        error = refused.value.response.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
        assert error["message"] == "Your limit is 4 requests an hour. Try again in 60 minutes."
        headers = refused.value.response.headers
        assert (headers["retry-after"], headers["x-should-retry"]) == ("120", "false")
        again = call(fake, "POST", f"/jobs/{doomed}/retry", status=429)
        assert again["code"] == "rate_limit_exceeded"
        put = call(fake, "PUT", f"/images/queue/{doomed}/status", status=429, json={"status": "pending"})
        assert put["code"] == "rate_limit_exceeded"
        assert fake.post_keyed({"Idempotency-Key": "k"}).status_code == 200, "known already"
        assert fake.rows("SELECT * FROM jobs") == before
        age(tmp_path, 59)
        soon = fake.post()
        assert soon.status_code == 429 and "x-should-retry" not in soon.headers
        assert 30 < int(soon.headers["retry-after"]) <= 60
        age(tmp_path, 1.1)
        assert httpx.post(f"{fake.url}/api/v1/jobs/{doomed}/retry").headers["x-ratelimit-remaining-requests"] == "3"


def test_who_is_over_a_limit_hears_so_before_room_is_kept(tmp_path: Path, ann: None) -> None:
    """Else whoever keeps asking in vain could keep the room from others."""
    with serving(tmp_path, requests_per_hour=2, queue_limit=1) as fake:
        fake.app.state.services.scheduler.pause(True)
        waiting = submit(fake)
        full = httpx.post(fake.url + "/api/v1/images/generate", json={"prompt": "a hat"})
        assert (full.status_code, full.json()["error"]["code"]) == (503, "queue_full")
        call(fake, "DELETE", f"/jobs/{waiting}")
        submit(fake)
        own = httpx.post(fake.url + "/api/v1/images/generate", json={"prompt": "a hat"})
        assert (own.status_code, own.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert call(fake, "POST", f"/jobs/{waiting}/retry", status=429)["code"] == "rate_limit_exceeded"


def test_the_limit_is_exact_over_http(tmp_path: Path, ann: None) -> None:
    with serving(tmp_path, requests_per_hour=10) as fake, ThreadPoolExecutor(50) as pool:
        codes = [answer.status_code for answer in pool.map(lambda _: fake.post(), range(50))]
        assert sorted(codes) == [200] * 10 + [429] * 40
        assert fake.statuses == ["completed"] * 10
    with serving(tmp_path, requests_per_hour=10) as again:
        assert again.post().status_code == 429, "a restart gives nothing back"


def test_an_owner_s_line_is_bounded(tmp_path: Path, ann: None) -> None:
    with serving(tmp_path, jobs_queued=3) as fake:
        fake.app.state.services.scheduler.pause(True)
        for _ in range(3):
            submit(fake)
        refused = httpx.post(fake.url + "/api/v1/images/generate", json={"prompt": "a hat"})
        assert refused.status_code == 429 and "3 of your jobs wait already" in refused.json()["error"]["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 120 and "x-should-retry" not in refused.headers


def test_operators_are_not_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: dict[str, Any] = {"requests_per_hour": 1, "jobs_queued": 1, "jobs_at_once": 1, "credits": "on"}
    with serving(tmp_path, **bounds, megapixel_steps_per_hour=1) as fake:
        for caller in (LOCAL, Caller("root", LOCAL.role)):
            become(monkeypatch, caller)
            for _ in range(3):
                answer = fake.post(n=2)
                assert (answer.status_code, *remaining(answer)) == (200, None, None, None)
            assert call(fake, "GET", "/usage")["limits"] is None


def test_what_was_used_and_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = {"requests_per_hour": 9, "megapixel_steps_per_hour": 1, "jobs_at_once": 0}
    with serving(tmp_path, catalog=priced("0.25"), **bounds) as fake:
        for key, count in (("key 1", 2), ("key 2", 1)):
            become(monkeypatch, Caller("ann", key_id=key))
            fake.post(n=count, width=64, height=64, steps=10)
        usage = call(fake, "GET", "/usage")
        assert (usage["owner"], usage["cost"], usage["balance"]) == ("ann", 0.75, 0.0)
        assert [(one["keyId"], one["images"], one["cost"]) for one in usage["keys"]] == [
            ("key 1", 2, 0.5),
            ("key 2", 1, 0.25),
        ]
        assert usage["limits"] == {
            "requestsPerHour": {"limit": 9, "left": 7},
            "megapixelStepsPerHour": {"limit": 1, "left": round(1 - 3 * 64 * 64 * 10 / 1e6, 3)},
            "jobsQueued": {"limit": 100, "left": 100},
            "jobsAtOnce": None,
        }
        for path in ("/usage/owners", "/usage?owner=bob", "/credits?owner=bob"):
            assert call(fake, "GET", path, status=403)["code"] == "forbidden"
        become(monkeypatch, LOCAL)
        fake.post()
        owners = call(fake, "GET", "/usage/owners")["owners"]
        assert [(one["owner"], one["jobs"], one["cost"]) for one in owners] == [("ann", 2, 0.75), ("local", 1, 0.25)]
        assert call(fake, "GET", "/usage?owner=ann") == usage


@pytest.mark.parametrize(("seconds", "told"), [(-1, "0s"), (0.2, "1s"), (59, "59s"), (360, "6m0s"), (3600, "1h0m0s")])
def test_durations_are_spelled_as_openai_does(seconds: float, told: str) -> None:
    assert spelled(seconds) == told
