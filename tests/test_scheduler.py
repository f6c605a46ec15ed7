"""The scheduler over a fake engine: joining, leaving, cancelling, failing, swapping."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

import server.scheduling.loop
import server.scheduling.verbs
from pipelines.catalog import ModelEntry, name_of
from pipelines.errors import CheckpointError, ImageFailed, NoRoom
from pipelines.progress import LoadStage
from pipelines.request import ImageRequest
from server.gpu import WorkerThread
from server.scheduling.loop import Scheduler
from server.scheduling.outlook import MAX_RETRY_AFTER
from server.scheduling.queue import Picture, QueueFull, Stage, Submission, Ticket
from tests.fakes import FakeDenoising, FakeEngine, entry, request

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def scheduling(engine: FakeEngine, max_rows: int = 8, queue_limit: int = 100) -> AsyncIterator[Scheduler]:
    gpu, loader = WorkerThread("gpu"), WorkerThread("loader")
    scheduler = Scheduler(engine, gpu, loader, max_rows=max_rows, queue_limit=queue_limit)
    worker = asyncio.create_task(scheduler.run())
    try:
        yield scheduler
    finally:
        worker.cancel()
        await asyncio.wait({worker})
        loader.close()
        gpu.close()


def submit(scheduler: Scheduler, model: str = "fake", priority: int = 0, owner: str = "", **changes: Any) -> Ticket:
    wish = request(model, **changes)
    with scheduler.reserve(entry(model), [wish]):
        return scheduler.submit(entry(model), wish, Submission(priority, owner))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_images_submitted_together_ride_together() -> None:
    engine = FakeEngine()
    async with scheduling(engine) as scheduler:
        tickets = [submit(scheduler, seed=seed, steps=2 + seed % 3, guidance_scale=1 + seed % 2) for seed in range(5)]
        pictures = await asyncio.gather(*(ticket.future for ticket in tickets))
    assert [picture.image.getpixel((0, 0)) for picture in pictures] == [(seed, 0, 0) for seed in range(5)]
    assert len(engine.batches[0]) == 5
    assert len(engine.batches) == 4, "five images of 2 to 4 steps need four forward passes together"


async def test_an_image_joins_a_running_batch_within_one_step_and_leaves_it_first() -> None:
    engine = FakeEngine(step_seconds=0.01)
    async with scheduling(engine) as scheduler:
        long = submit(scheduler, prompt="long", steps=60)
        await until(lambda: len(engine.batches) >= 3)
        joined_at = len(engine.batches)
        short = submit(scheduler, prompt="short", steps=3)
        await short.future
        assert long.live
        with_short = [index for index, batch in enumerate(engine.batches) if len(batch) == 2]
    assert with_short[0] <= joined_at + 3, "the step that ran, one asked for already, and perhaps one unseen yet"
    assert len(with_short) == 3


async def test_a_cancelled_image_is_gone_by_the_next_step_and_its_rows_are_used() -> None:
    engine = FakeEngine(step_seconds=0.01)
    async with scheduling(engine, max_rows=2) as scheduler:
        first = submit(scheduler, prompt="first", steps=1000)
        await until(lambda: len(engine.batches) >= 3)
        second = submit(scheduler, prompt="second", steps=2000)
        await until(lambda: second.stage is Stage.DENOISING)
        first.future.cancel()
        cancelled_at = len(engine.batches)
        await until(lambda: len(engine.batches) >= cancelled_at + 4)
        later = [batch[0].prompt for batch in engine.batches[cancelled_at + 1 :]]
    assert set(later) == {"second"}


@pytest.mark.parametrize("moment", ["encode", "step", "finish"])
async def test_one_images_failure_is_its_own(moment: str) -> None:
    engine = FakeEngine(failing={f"{moment} bad": ImageFailed("planted")})
    async with scheduling(engine) as scheduler:
        good, bad, also_good = (submit(scheduler, prompt=prompt) for prompt in ("good", "bad", "also good"))
        outcomes = await asyncio.gather(good.future, bad.future, also_good.future, return_exceptions=True)
    assert isinstance(outcomes[0], Picture) and isinstance(outcomes[2], Picture)
    assert str(outcomes[1]) == "planted"


async def test_an_engine_that_raises_ends_that_batch_and_not_the_scheduler() -> None:
    engine = FakeEngine()

    def explode(*_: Any) -> Any:
        raise RuntimeError("unforeseen")

    async with scheduling(engine) as scheduler:
        step, engine.step = engine.step, explode  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="unforeseen"):
            await submit(scheduler).future
        engine.step = step  # type: ignore[method-assign]
        assert isinstance(await submit(scheduler).future, Picture)


async def test_a_model_that_cannot_be_loaded_fails_its_own_images_only() -> None:
    engine = FakeEngine(failing={"broken": CheckpointError("no such folder")})
    async with scheduling(engine) as scheduler:
        bad, good = submit(scheduler, "broken"), submit(scheduler, "fake")
        with pytest.raises(CheckpointError):
            await bad.future
        await good.future


async def test_a_deterministic_image_rides_alone_and_is_decoded_alone() -> None:
    engine = FakeEngine(step_seconds=0.002)
    async with scheduling(engine) as scheduler:
        tickets = [submit(scheduler, seed=seed, steps=5, deterministic=seed in (1, 2)) for seed in range(5)]
        await asyncio.gather(*(ticket.future for ticket in tickets))
    for batches in (engine.batches, engine.decoded):
        assert {len(batch) for batch in batches if any(item.deterministic for item in batch)} == {1}
        assert 3 in {len(batch) for batch in batches}, "the others ride together as ever"


async def test_the_row_of_an_image_whose_guidance_has_ended_is_another_s() -> None:
    engine = FakeEngine()
    async with scheduling(engine, max_rows=4) as scheduler:
        tickets = [submit(scheduler, seed=seed, steps=4, skip_guidance=0.5) for seed in range(4)]
        await asyncio.gather(*(ticket.future for ticket in tickets))
    # Two of two rows each; then their one row each leaves room for the third, and so on.
    assert [len(batch) for batch in engine.batches] == [2, 2, 3, 3, 2, 2, 1, 1]


async def test_what_is_done_soonest_is_done_first_whatever_its_shape() -> None:
    engine = FakeEngine(step_seconds=0.002)
    ends: list[int] = []
    async with scheduling(engine) as scheduler:
        await submit(scheduler).future  # the model is there from now on
        tickets = [submit(scheduler, width=width, steps=steps) for width, steps in ((64, 60), (128, 20), (192, 40))]
        for ticket in tickets:
            ticket.future.add_done_callback(lambda _, steps=ticket.request.steps: ends.append(steps))
        await asyncio.gather(*(ticket.future for ticket in tickets))
        await asyncio.sleep(0)
    assert ends == [20, 40, 60]


async def test_no_stream_of_short_images_starves_a_long_one() -> None:
    engine = FakeEngine(step_seconds=0.001)
    async with scheduling(engine) as scheduler:
        long = submit(scheduler, width=192, steps=40)
        served = 0
        while long.live:
            await asyncio.gather(*(submit(scheduler, steps=2, owner=f"{n}").future for n in range(3)))
            served += 3
            assert served < 1000, "it starved"
    assert served > 3, "the short ones went first for a while"


async def test_an_owner_with_one_image_does_not_wait_for_all_of_anothers() -> None:
    engine = FakeEngine(step_seconds=0.001)
    async with scheduling(engine, max_rows=2) as scheduler:
        await submit(scheduler).future
        many = [submit(scheduler, seed=seed, steps=20, owner="many") for seed in range(30)]
        await until(lambda: sum(not ticket.live for ticket in many) >= 2)
        await submit(scheduler, steps=20, owner="one").future
        assert sum(ticket.live for ticket in many) > 15


async def test_priority_goes_first_and_the_others_resume() -> None:
    engine = FakeEngine(step_seconds=0.005)
    async with scheduling(engine, max_rows=2) as scheduler:
        patient = submit(scheduler, prompt="patient", steps=20)
        await until(lambda: len(engine.batches) >= 2)
        urgent = submit(scheduler, priority=5, prompt="urgent", steps=5)
        await urgent.future
        assert patient.live
        await patient.future
    prompts = [batch[0].prompt for batch in engine.batches]
    start = prompts.index("urgent")
    assert prompts[start : start + 5] == ["urgent"] * 5
    assert prompts.count("patient") == 20


async def test_models_beyond_the_limit_drain_and_swap_and_nobody_starves() -> None:
    engine = FakeEngine(step_seconds=0.001, resident_limit=1)
    async with scheduling(engine) as scheduler:
        await submit(scheduler, "a").future
        others: list[Ticket] = [submit(scheduler, "a", seed=seed) for seed in range(3)]
        other = submit(scheduler, "b")
        while other.live:  # the model that is there never lacks work
            others += [submit(scheduler, "a", seed=len(others)) for _ in range(3 - sum(t.live for t in others))]
            await asyncio.wait([other.future, *(t.future for t in others if t.live)], return_when="FIRST_COMPLETED")
            assert len(others) < 1000, "it starved"
        await asyncio.gather(*(ticket.future for ticket in others))
    assert engine.loads == ["a", "b", "a"]


class SmallEngine(FakeEngine):
    """By count there is room for both models, by memory only for one."""

    def place(self, entry: ModelEntry, family: Any, busy: Collection[str], progress: Any = None) -> None:
        if entry.identity not in self.resident:
            if busy:
                self.refused += 1
                raise NoRoom("There is no room.")
            self.resident.clear()
        super().place(entry, family, busy, progress)


async def test_models_that_do_not_fit_together_drain_and_swap_and_the_attempt_is_made_once() -> None:
    engine = SmallEngine(step_seconds=0.002)
    async with scheduling(engine) as scheduler:
        first = submit(scheduler, "a", steps=30)
        await until(lambda: bool(engine.batches))
        tickets = [first, *(submit(scheduler, model, seed=seed) for seed in range(3) for model in "ba")]
        await asyncio.gather(*(ticket.future for ticket in tickets))
    assert engine.loads[:2] == ["a", "b"]
    assert 1 <= engine.refused <= 2, "b beside a, and perhaps a beside b: each is learnt once"


class LargeModelEngine(FakeEngine):
    """There is room for a and b together, or for c alone."""

    def place(self, entry: ModelEntry, family: Any, busy: Collection[str], progress: Any = None) -> None:
        apart = [other for other in self.resident if (name_of(other) == "c") != (entry.name == "c")]
        for other in apart:
            if other in busy:
                self.refused += 1
                raise NoRoom("There is no room.")
            self.resident.remove(other)
        super().place(entry, family, busy, progress)


async def test_a_model_in_whose_way_each_of_two_others_is_alone_gets_its_turn_beside_both() -> None:
    engine = LargeModelEngine(step_seconds=0.001)
    async with scheduling(engine) as scheduler:
        for model in "ab":  # learn that c fits beside neither
            busy, other = submit(scheduler, model, steps=10_000), submit(scheduler, "c", steps=10_000)
            await until(lambda: bool(engine.refused))
            engine.refused = 0
            for ticket in (busy, other):
                ticket.future.cancel()
            await until(lambda: not scheduler.depth)
        streams = [submit(scheduler, model, seed=seed) for seed in range(2) for model in "ab"]
        large = submit(scheduler, "c")
        while large.live:
            live = [ticket for ticket in streams if ticket.live]
            streams = live + [submit(scheduler, model, steps=20) for model in "ab"][: 6 - len(live)]
            await asyncio.wait([large.future, *(ticket.future for ticket in streams)], return_when="FIRST_COMPLETED")
            assert len(engine.batches) < 5_000, "it starved"


async def test_loading_ahead_waits_for_room_and_says_at_once_that_it_must() -> None:
    async with scheduling(SmallEngine(step_seconds=0.002)) as scheduler:
        running = submit(scheduler, "a", steps=200)
        await until(lambda: scheduler.resident == ["a"] and running.stage is not Stage.WAITING)
        await scheduler.load(entry("b"))
        assert running.live and scheduler.resident == ["a"]
        await running.future
        await until(lambda: scheduler.resident == ["b"])


class OneThreadEngine(FakeEngine):
    """Its state may be read on the GPU thread only."""

    def __getattribute__(self, name: str) -> Any:
        assert name != "state" or threading.current_thread().name.startswith("gpu"), "read on the event loop"
        return super().__getattribute__(name)


async def test_the_engines_state_is_read_on_the_gpu_thread_only() -> None:
    async with scheduling(OneThreadEngine(resident_limit=1)) as scheduler:
        await submit(scheduler, "a").future
        await submit(scheduler, "b").future
        assert scheduler.resident == ["b"]


async def test_a_model_that_a_failed_load_pushed_out_is_no_longer_resident() -> None:
    engine = FakeEngine(resident_limit=1, failing={"place broken": CheckpointError("no such folder")})
    async with scheduling(engine) as scheduler:
        await submit(scheduler, "a").future
        assert scheduler.resident == ["a"]
        with pytest.raises(CheckpointError):
            await submit(scheduler, "broken").future
        assert scheduler.resident == []


async def test_a_model_is_loaded_ahead_of_its_first_image() -> None:
    engine = FakeEngine(failing={"broken": CheckpointError("no such folder")})
    async with scheduling(engine) as scheduler:
        await scheduler.load(entry("a"))
        assert scheduler.resident == ["a"]
        with pytest.raises(CheckpointError):
            await scheduler.load(entry("broken"))
        await submit(scheduler, "a").future
    assert engine.loads == ["a"]


async def test_loading_ahead_pushes_no_busy_model_out() -> None:
    engine = FakeEngine(step_seconds=0.002, resident_limit=1)
    async with scheduling(engine) as scheduler:
        busy = submit(scheduler, "a", steps=10_000)
        await until(lambda: bool(engine.batches))
        await scheduler.load(entry("b"))
        steps = len(engine.batches)
        await until(lambda: len(engine.batches) > steps + 5)
        assert engine.loads == ["a"] and engine.refused == 1
        busy.future.cancel()
        await until(lambda: engine.loads == ["a", "b"])


async def test_what_was_wanted_ahead_and_is_offered_no_longer_is_not_loaded() -> None:
    engine = FakeEngine(step_seconds=0.002, resident_limit=1)
    async with scheduling(engine) as scheduler:
        busy = submit(scheduler, "a", steps=10_000)
        await until(lambda: bool(engine.batches))
        await scheduler.load(entry("b"))
        scheduler.retire({entry("b").identity})
        busy.future.cancel()
        await submit(scheduler, "a").future
    assert engine.loads == ["a"]


async def test_a_steps_cost_is_its_own_and_not_that_of_what_it_queued_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    clock = 0.0

    def slow_encode(entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Any]:
        nonlocal clock
        time.sleep(0.1)  # meanwhile the next step is asked for
        clock += 100
        return FakeEngine.encode(engine, entry, requests)

    def step(entry: ModelEntry, batch: Sequence[FakeDenoising]) -> list[Exception | None]:
        nonlocal clock
        clock += 1
        return FakeEngine.step(engine, entry, batch)

    engine.encode, engine.step = slow_encode, step  # type: ignore[method-assign]
    monkeypatch.setattr(server.scheduling.verbs, "monotonic", lambda: clock)
    seen: list[float] = []
    async with scheduling(engine) as scheduler:
        monkeypatch.setattr(scheduler.books.cost, "observe_step", lambda key, rows, seconds: seen.append(seconds))
        submit(scheduler, steps=100_000)
        await until(lambda: bool(engine.batches))
        await submit(scheduler, steps=3).future
    assert set(seen) == {1.0}


async def test_the_queue_is_bounded_and_says_when_to_come_back() -> None:
    engine = FakeEngine(step_seconds=0.01)
    async with scheduling(engine, queue_limit=3) as scheduler:
        tickets = [submit(scheduler, steps=10_000) for _ in range(3)]
        with pytest.raises(QueueFull) as refused:
            submit(scheduler)
        assert 1 <= refused.value.retry_after <= MAX_RETRY_AFTER
        tickets[0].future.cancel()
        await asyncio.sleep(0)
        submit(scheduler)


async def test_finished_images_are_decoded_together_while_steps_go_on() -> None:
    engine = FakeEngine(step_seconds=0.003)
    async with scheduling(engine) as scheduler:
        tickets = [submit(scheduler, seed=seed, steps=5) for seed in range(4)]
        long = submit(scheduler, steps=50)
        await asyncio.gather(*(ticket.future for ticket in tickets))
        assert long.live
    assert [len(batch) for batch in engine.decoded] == [4]


async def test_watchers_see_every_step_and_the_end() -> None:
    engine = FakeEngine()
    seen: list[tuple[int, bool]] = []
    async with scheduling(engine) as scheduler:
        ticket = scheduler.submit(entry(), request(steps=3), watch=lambda t: seen.append((t.step, t.live)))
        await ticket.future
        await asyncio.sleep(0)
    assert seen == [(0, True), (1, True), (2, True), (3, True), (3, False)]


async def test_stopping_ends_everybody_who_waits() -> None:
    engine = FakeEngine(step_seconds=0.01)
    async with scheduling(engine) as scheduler:
        ticket = submit(scheduler, steps=10_000)
        await until(lambda: bool(engine.batches))
    assert ticket.future.cancelled()


async def test_a_storm_of_random_joins_and_cancels_leaves_nothing_behind() -> None:
    import random

    engine = FakeEngine(resident_limit=1)
    rng = random.Random(4)
    async with scheduling(engine, max_rows=5, queue_limit=10_000) as scheduler:
        waiting: list[Awaitable[Any]] = []
        kept: list[Ticket] = []
        for number in range(300):
            ticket = submit(
                scheduler,
                rng.choice("ab"),
                rng.choice([0, 0, 0, 3]),
                width=rng.choice([64, 128]),
                steps=rng.randint(1, 6),
                guidance_scale=rng.choice([1, 5]),
                seed=number,
            )
            if rng.random() < 0.3:
                asyncio.get_running_loop().call_later(rng.random() * 0.05, ticket.future.cancel)
            else:
                kept.append(ticket)
            waiting.append(ticket.future)
            if rng.random() < 0.2:
                await asyncio.sleep(0.001)
        async with asyncio.timeout(60):
            await asyncio.gather(*waiting, return_exceptions=True)
        assert scheduler.depth == 0
    assert all(isinstance(ticket.future.result(), Picture) for ticket in kept)
    assert all(len({(item.model, item.width, item.height) for item in batch}) == 1 for batch in engine.batches)
    assert all(sum(item.rows for item in batch) <= 5 for batch in engine.batches)


async def test_a_preview_shows_the_image_as_far_as_it_is_and_is_drawn_once_a_step() -> None:
    engine = FakeEngine(step_seconds=0.02)
    async with scheduling(engine) as scheduler:
        ticket = submit(scheduler, steps=1000)
        assert await scheduler.previews.of(ticket) is None, "nothing is to be seen yet"
        await until(lambda: ticket.step >= 2)
        several = await asyncio.gather(*(scheduler.previews.of(ticket) for _ in range(20)))
        assert all(image is not None for image in several)
        assert len(engine.previewed) < 20, "who looks at once sees the same drawing"
        assert engine.previewed[0] >= 2
        ticket.future.cancel()
        assert await scheduler.previews.of(ticket) is None


async def test_a_preview_that_fails_harms_nobody() -> None:
    engine = FakeEngine(step_seconds=0.005, failing={"preview a hat": ImageFailed("planted")})
    async with scheduling(engine) as scheduler:
        ticket = submit(scheduler, steps=50)
        await until(lambda: ticket.step >= 2)
        with pytest.raises(ImageFailed, match="planted"):
            await scheduler.previews.of(ticket)
        assert isinstance(await ticket.future, Picture)


async def test_models_no_longer_offered_leave_once_idle() -> None:
    engine = FakeEngine(step_seconds=0.005)
    async with scheduling(engine) as scheduler:
        ticket = submit(scheduler, "a", steps=30)
        await until(lambda: ticket.step >= 2)
        scheduler.retire({entry("a").identity})
        await until(lambda: ticket.step >= 10)
        assert scheduler.resident == ["a"], "an image is made with it"
        await ticket.future
        await until(lambda: scheduler.resident == [])


async def test_how_long_a_model_takes_to_come_is_learnt_from_those_that_came() -> None:
    engine = FakeEngine(resident_limit=1)
    async with scheduling(engine) as scheduler:
        assert scheduler.models.seconds_to_come(entry("a").identity) == 0.0, "nothing is known"
        await submit(scheduler, "a").future
        assert scheduler.models.seconds_to_come(entry("a").identity) == 0.0, "it is there"
        guess = scheduler.models.seconds_to_come(entry("b").identity)
        assert guess > 0, "as long as the longest"
        await submit(scheduler, "b").future
        assert 0 < scheduler.models.seconds_to_come(entry("a").identity) == guess


async def test_idle_models_leave_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.scheduling.loop, "HOUSEKEEPING_SECONDS", 0.02)
    engine = FakeEngine()
    gpu, loader = WorkerThread("gpu"), WorkerThread("loader")
    scheduler = Scheduler(engine, gpu, loader, max_rows=8, queue_limit=9, idle_seconds=0.1)
    worker = asyncio.create_task(scheduler.run())
    await submit(scheduler, "a").future
    assert scheduler.resident == ["a"]
    await until(lambda: scheduler.resident == [])
    assert isinstance(await submit(scheduler, "a").future, Picture), "it comes back when it is wanted"
    worker.cancel()
    await asyncio.wait({worker})
    loader.close()
    gpu.close()


async def test_a_load_tells_how_far_it_is_and_holds_up_no_other_model() -> None:
    reading = threading.Event()

    class SlowReader(FakeEngine):
        def read(self, entry: ModelEntry, progress: Any) -> str:
            if entry.name == "slow":
                progress(LoadStage.READING, 0.5)
                assert reading.wait(10)
            return super().read(entry, progress)

    engine = SlowReader(step_seconds=0.001)
    async with scheduling(engine) as scheduler:
        await submit(scheduler, "quick").future
        slow = submit(scheduler, "slow")
        await until(lambda: scheduler.models.loading is not None and scheduler.models.loading.share == 0.5)
        assert isinstance(await submit(scheduler, "quick").future, Picture)
        assert scheduler.models.loading is not None and scheduler.models.loading.model == "slow"
        reading.set()
        await slow.future
        assert scheduler.models.loading is None


async def test_an_image_whose_model_was_evicted_before_its_turn_goes_back_in_line() -> None:
    engine = FakeEngine()
    async with scheduling(engine) as scheduler:
        await submit(scheduler, "a").future
        engine.resident.clear()  # behind the scheduler's back, as a place() between decision and visit does
        assert isinstance(await submit(scheduler, "a").future, Picture)
    assert engine.loads == ["a", "a"]


class OneMemoryEngine(FakeEngine):
    """Device and host share one memory: a model is evicted before the next one is read."""

    def make_room(self, entry: ModelEntry, busy: Collection[str]) -> None:
        if entry.identity not in self.resident and self.resident:
            if set(self.resident) & set(busy):
                self.refused += 1
                raise NoRoom("There is no room.")
            self.resident.clear()


async def test_models_that_share_one_memory_do_not_swap_before_either_made_a_picture() -> None:
    engine = OneMemoryEngine(resident_limit=1)
    async with scheduling(engine) as scheduler:
        tickets = [submit(scheduler, model) for model in "ab"]
        async with asyncio.timeout(10):
            await asyncio.gather(*(ticket.future for ticket in tickets))
    assert sorted(engine.loads) == ["a", "b"]


async def test_a_model_that_cannot_be_measured_works_all_the_same() -> None:
    class Unmeasurable(FakeEngine):
        def measure(self, entry: ModelEntry) -> Any:
            raise RuntimeError("out of memory, planted")

    async with scheduling(Unmeasurable()) as scheduler:
        assert isinstance(await submit(scheduler).future, Picture)
        assert scheduler.books.cost.step_seconds(submit(scheduler).key, 2) < 0.01, "its steps taught what they cost"


async def test_a_deadline_that_comes_near_is_seen_between_two_steps() -> None:
    engine = FakeEngine(step_seconds=0.01)
    async with scheduling(engine, max_rows=2) as scheduler:
        await submit(scheduler).future
        others = [submit(scheduler, seed=seed, steps=40) for seed in range(4)]
        await until(lambda: others[0].step > 2)
        wish = request(steps=60, prompt="urgent")
        ticket = scheduler.submit(entry(), wish, Submission(deadline=2 * 60 * 0.012))
        await ticket.future
        assert sum(other.live for other in others) >= 2, "it did not wait for all of them"
