"""The ledger balances: whatever happens to jobs, in whatever order, at the same time, and over crashes."""

import asyncio
import random
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipelines.catalog import Catalog
from pipelines.errors import ImageFailed
from pipelines.pricing import Price
from server.errors import Cancelled
from server.gpu import WorkerThread
from server.jobs.events import Events
from server.jobs.jobs import Jobs
from server.jobs.orders import Order
from server.limits import Limits
from server.scheduling.loop import Scheduler
from server.weights import WeightHashes
from storage.credits import Credits
from storage.database import Database
from storage.errors import IllegalTransition, NotEnoughCredit, ReferenceReused
from storage.jobs import JobStore
from storage.money import to_amount, to_micros, total
from storage.records import EntryKind, JobRecord, JobStatus, Terms
from storage.room import Room
from storage.stats import Stats
from tests.fake_server import GatedEngine
from tests.fakes import entry, request
from tests.ledgers import check_ledger
from tests.storage_fakes import new_image, new_job, opened

PAID = Terms(credits=True)
OWNERS = st.sampled_from(["ann", "bob"])
AMOUNTS = st.integers(1, 300_000)
PICK = st.integers(0, 10**6)
T = TypeVar("T")


class LedgerMachine(RuleBasedStateMachine):
    """Owners with credit, and jobs on their way through the database."""

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.granted = {"ann": 0, "bob": 0}
        self.prices: dict[str, int] = {}
        self.ids: list[str] = []
        self.boot = 0
        self.open()

    def open(self) -> None:
        self.database: Database = self.run(Database.open(Path(self.folder.name)))
        self.jobs, self.credits = JobStore(self.database), Credits(self.database)

    def run(self, verb: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(verb)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.run(self.database.close())
            self.loop.close()
            self.folder.cleanup()

    @property
    def boot_id(self) -> str:
        return f"boot {self.boot}"

    def submit(self, owner: str, price: int, count: int) -> Coroutine[Any, Any, JobRecord]:
        cost = total([to_amount(price)] * count)
        return self.jobs.insert(
            new_job(owner_id=owner, image_count=count, expected_cost=cost, attached=bool(price % 2)), terms=PAID
        )

    def complete(self, job_id: str, made: int) -> Coroutine[Any, Any, JobRecord]:
        images = [new_image(index=index, cost=to_amount(self.prices[job_id])) for index in range(made)]
        return self.jobs.complete(job_id, self.boot_id, images)

    @rule(owner=OWNERS, amount=AMOUNTS)
    def grant(self, owner: str, amount: int) -> None:
        self.run(self.credits.grant(owner, 10 * amount, None, None))
        self.granted[owner] += 10 * amount

    @rule(owner=OWNERS, amount=AMOUNTS)
    def take_back(self, owner: str, amount: int) -> None:
        balance = self.run(self.credits.balance(owner))
        if amount > balance:
            with pytest.raises(NotEnoughCredit):
                self.run(self.credits.grant(owner, -amount, "too much", None))
        else:
            self.run(self.credits.grant(owner, -amount, None, None))
            self.granted[owner] -= amount

    @rule(owner=OWNERS, price=AMOUNTS, count=st.integers(1, 4), at_once=st.integers(1, 6))
    def hand_in(self, owner: str, price: int, count: int, at_once: int) -> None:
        """As many are accepted as the balance pays for, and not one more."""
        affordable = self.run(self.credits.balance(owner)) // (price * count)

        async def all_at_once() -> list[JobRecord | BaseException]:
            return await asyncio.gather(
                *(self.submit(owner, price, count) for _ in range(at_once)), return_exceptions=True
            )

        answers = self.run(all_at_once())
        accepted = [answer for answer in answers if isinstance(answer, JobRecord)]
        assert len(accepted) == min(at_once, affordable)
        assert all(isinstance(answer, JobRecord | NotEnoughCredit) for answer in answers)
        self.ids += [job.id for job in accepted]
        self.prices |= {job.id: price for job in accepted}

    @precondition(lambda self: self.ids)
    @rule(pick=PICK)
    def start(self, pick: int) -> None:
        with suppress(IllegalTransition):
            self.run(self.jobs.start(self.ids[pick % len(self.ids)], self.boot_id))

    @precondition(lambda self: self.ids)
    @rule(pick=PICK, missing=st.integers(0, 3))
    def finish(self, pick: int, missing: int) -> None:
        """With all of its pictures, or with some."""
        job = self.run(self.jobs.get(None, self.ids[pick % len(self.ids)]))
        with suppress(IllegalTransition):
            if job.status is JobStatus.PENDING:
                self.run(self.jobs.start(job.id, self.boot_id))
            self.run(self.complete(job.id, max(1, job.image_count - missing)))

    @precondition(lambda self: self.ids)
    @rule(pick=PICK, verb=st.sampled_from(["fail", "cancel", "retry", "postpone", "requeue", "lose"]))
    def happen(self, pick: int, verb: str) -> None:
        with suppress(IllegalTransition, NotEnoughCredit):
            self.run(self.verb(verb, self.ids[pick % len(self.ids)]))

    def verb(self, verb: str, job_id: str) -> Coroutine[Any, Any, JobRecord]:
        match verb:
            case "fail":
                return self.jobs.fail(job_id, "x", "y")
            case "cancel":
                return self.jobs.cancel(None, job_id)
            case "retry":
                return self.jobs.retry(None, job_id, PAID)
            case "postpone":
                return self.jobs.postpone(job_id, datetime.now(UTC), "x", "y")
            case _:
                return self.jobs.requeue(job_id, "z", lost=verb == "lose")

    @precondition(lambda self: self.ids)
    @rule(pick=PICK)
    def race(self, pick: int) -> None:
        """Everything at the same moment."""
        job_id = self.ids[pick % len(self.ids)]

        async def all_at_once() -> list[Any]:
            verbs = [self.complete(job_id, 1), *(self.verb(verb, job_id) for verb in ("cancel", "fail", "retry"))]
            return await asyncio.gather(*verbs, return_exceptions=True)

        outcomes = self.run(all_at_once())
        assert all(isinstance(one, JobRecord | IllegalTransition | NotEnoughCredit) for one in outcomes), outcomes

    @rule(owner=OWNERS)
    def clear(self, owner: str) -> None:
        self.run(self.jobs.clear(owner))

    @rule()
    def crash(self) -> None:
        self.run(self.database.close())
        self.open()
        self.boot += 1
        self.run(self.jobs.recover(self.boot_id))

    @invariant()
    def it_balances(self) -> None:
        balances = check_ledger(Path(self.folder.name))
        for owner, granted in self.granted.items():
            page = self.run(self.credits.page(owner, 1))
            assert page.balance == balances.get(owner, 0) == granted - self.settled(owner) - page.reserved

    def settled(self, owner: str) -> int:
        jobs = [self.run(self.jobs.get(None, job_id)) for job_id in self.ids]
        return sum(to_micros(job.cost) for job in jobs if job.owner_id == owner and job.status is JobStatus.COMPLETED)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,  # the same examples at every run
    database=None,
    phases=[Phase.generate],  # an example is short as it is, and to shorten one takes minutes
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.anyio
async def test_what_a_job_leaves_in_the_ledger(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs, credits = JobStore(database), Credits(database)
        await credits.grant("ann", 1_000_000, "welcome", None)
        job = await jobs.insert(new_job(image_count=2, expected_cost=0.5), terms=PAID)
        await jobs.start(job.id, "boot")
        await jobs.complete(job.id, "boot", [new_image(cost=0.25)], error_code="partly_failed")
        page = await credits.page("ann", 10)
    told = [(one.kind, one.amount, one.balance, one.note) for one in page.entries]
    assert told == [
        (EntryKind.SETTLE, -250_000, 750_000, None),
        (EntryKind.REFUND, 500_000, 1_000_000, "partly_failed"),
        (EntryKind.RESERVE, -500_000, 500_000, None),
        (EntryKind.GRANT, 1_000_000, 1_000_000, "welcome"),
    ]
    assert {one.job_id for one in page.entries} == {job.id, None}


@pytest.mark.anyio
async def test_without_enough_credit_there_is_no_row(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        jobs, credits = JobStore(database), Credits(database)
        await credits.grant("ann", 499_999, None, None)
        for attempt in (jobs.foresee, jobs.insert):
            with pytest.raises(NotEnoughCredit, match="balance is 0.499999, and 0.5 is needed"):
                await attempt(new_job(expected_cost=0.5), None, PAID)
        assert await jobs.pending() == []
        free = await jobs.insert(new_job(), terms=PAID)
        given = await jobs.insert(new_job(expected_cost=9.0))
        for job in (free, given):
            await jobs.cancel("ann", job.id)
        assert len((await credits.page("ann", 10)).entries) == 1, "a job that costs nothing leaves no entry"


@pytest.mark.anyio
async def test_a_reference_is_one_grant(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        credits = Credits(database)
        grants = [credits.grant("ann", 5, "a gift", "invoice 7") for _ in range(5)]
        assert len({one.id for one in await asyncio.gather(*grants)}) == 1
        assert await credits.balance("ann") == 5
        for owner, amount, note in (("bob", 5, "a gift"), ("ann", 6, "a gift"), ("ann", 5, None)):
            with pytest.raises(ReferenceReused, match="'invoice 7' was used for another grant"):
                await credits.grant(owner, amount, note, "invoice 7")


@pytest.mark.anyio
async def test_entries_come_in_pages(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        credits = Credits(database)
        for amount in range(1, 6):
            await credits.grant("ann", amount, None, None)
            await credits.grant("bob", 100, None, None)
        first = await credits.page("ann", 2)
        second = await credits.page("ann", 2, first.cursor)
        last = await credits.page("ann", 2, second.cursor)
    pages = [[one.amount for one in page.entries] for page in (first, second, last)]
    assert pages == [[5, 4], [3, 2], [1]] and last.cursor is None and first.balance == 15


FAILING = range(0, 1000, 7)
"""Seeds whose pictures fail at the last moment."""


def order(number: int, draw: random.Random) -> Order:
    model = replace(entry(), price=Price(Decimal(draw.choice(range(3)))))
    prompt = "doomed" if number % 9 == 0 else "a hat"
    seeds = [draw.randrange(1000) for _ in range(draw.randint(1, 2))]
    images = [request(prompt=prompt, seed=seed, steps=2, width=16, height=16) for seed in seeds]
    return Order(f"owner {number % 3}", model, images, limited=True, attached=number % 2 == 0)


async def live(jobs: Jobs, number: int, draw: random.Random, catalog: Catalog) -> None:
    """One client: it waits, hangs up, comes back to cancel, or tries again."""
    wanted = order(number, draw)
    await asyncio.sleep(draw.uniform(0, 0.5))
    if wanted.attached:
        waiting = asyncio.create_task(jobs.run(wanted))
        if number % 4 == 0:
            await asyncio.wait({waiting}, timeout=draw.uniform(0, 0.3))
            waiting.cancel()
        await asyncio.wait({waiting})
        error = None if waiting.cancelled() else waiting.exception()
        assert isinstance(error, ImageFailed | NotEnoughCredit | Cancelled | None), error
        return
    with suppress(NotEnoughCredit, IllegalTransition):
        job = await jobs.submit(wanted)
        await asyncio.sleep(draw.uniform(0, 0.5))
        if number % 3 == 0:
            await jobs.cancel(None, job.id)
        await jobs.retry(None, job.id, catalog, limited=True)


@pytest.mark.anyio
async def test_five_hundred_clients_at_once(tmp_path: Path) -> None:
    draw = random.Random(5)
    engine = GatedEngine(failing={"step doomed": ImageFailed("planted")})
    engine.failing_seeds = dict.fromkeys(FAILING, ImageFailed("planted"))
    catalog = Catalog({"fake": entry()}, "fake", Path("models.toml"))
    gpu, loader = WorkerThread("gpu"), WorkerThread("loader")
    scheduler = Scheduler(engine, gpu, loader, max_rows=64, queue_limit=5000)
    limits = Limits(jobs_at_once=20, credits=True)
    async with opened(tmp_path) as database:
        for number in range(3):
            await Credits(database).grant(f"owner {number}", to_micros(100), None, None)
        jobs = Jobs(database, Room(tmp_path), scheduler, WeightHashes(None), Events(), limits=limits)
        computing = asyncio.create_task(scheduler.run())
        await asyncio.gather(*(live(jobs, number, draw, catalog) for number in range(500)))
        check_ledger(tmp_path)
        await jobs.idle()
        await jobs.close()
        computing.cancel()
        await asyncio.wait({computing})
        entries = [await Credits(database).page(f"owner {number}", 1) for number in range(3)]
        statuses = (await Stats(database).totals(None, datetime(2000, 1, 1, tzinfo=UTC))).jobs
    loader.close()
    gpu.close()
    assert set(statuses) == {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}
    assert sum(statuses.values()) < 500, "some had not credit enough"
    assert [page.reserved for page in entries] == [0, 0, 0], "nothing is open"
    assert check_ledger(tmp_path) == {f"owner {number}": page.balance for number, page in enumerate(entries)}
