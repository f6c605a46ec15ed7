"""A device that fails or hangs for good: the process says so and ends, and the next one finishes what it had."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import pytest
import torch

import pipelines.device
import server.scheduling.models
import server.scheduling.verbs
import server.watchdog
from pipelines.catalog import Catalog, ModelEntry
from pipelines.denoising import Denoising
from pipelines.device import pick_device, responds
from pipelines.engine import Engine
from pipelines.errors import DeviceLost, ImageFailed
from pipelines.progress import LoadStage, Progress, untold
from pipelines.request import Wishes, settle
from server.gpu import WorkerThread
from server.scheduling.loop import Scheduler
from server.watchdog import watch
from storage.database import Database
from storage.jobs import JobStore
from storage.records import JobRecord, NewJob
from tests.fake_server import GENERATIONS, PATIENCE, FakeServer, Gate, GatedEngine, calling, eventually, serving
from tests.fakes import FakeEngine, entry, request
from tests.test_cli import variables

LOST = DeviceLost("The device was lost (planted).")


# The engine


@pytest.fixture
def model(engine: Engine, catalog: Catalog) -> ModelEntry:
    found = catalog.resolve("tiny-sdxl")
    engine.load(found)
    return found


def begin(engine: Engine, model: ModelEntry, count: int) -> list[Denoising]:
    requests = [settle(Wishes("a hat", steps=2), model, seed) for seed in range(count)]
    images = engine.begin(model, requests, engine.encode(model, requests))
    return [image for image in images if isinstance(image, Denoising)]


def failing(error: Exception) -> Callable[..., Any]:
    """Stands for whatever fails so."""

    def fail(*_: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("verb", ["encode", "predict", "decode"])
def test_an_error_after_which_nothing_computes_is_no_images_own(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, model: ModelEntry, verb: str
) -> None:
    batch = begin(engine, model, 3)
    calls = {
        "encode": lambda: engine.encode(model, [image.request for image in batch]),
        "predict": lambda: engine.step(model, batch),
        "decode": lambda: engine.finish(model, batch),
    }
    access = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(engine.family(model), verb, failing(access))
    outcomes: Sequence[Any] = calls[verb]()
    assert all(isinstance(outcome, ImageFailed) for outcome in outcomes), "the device answers, so it was theirs"
    monkeypatch.setattr(pipelines.device, "responds", lambda device: False)
    with pytest.raises(DeviceLost, match="only a new process"):
        calls[verb]()


@pytest.mark.parametrize("place", ["pipelines.engine.synchronize", "pipelines.isolation.free_memory"])
def test_an_error_that_shows_only_later_is_looked_into_as_well(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, model: ModelEntry, place: str
) -> None:
    batch = begin(engine, model, 2)
    monkeypatch.setattr(place, failing(RuntimeError("CUDA error: device-side assert triggered")))
    if place.endswith("free_memory"):
        monkeypatch.setattr(engine.family(model), "predict", failing(torch.OutOfMemoryError("planted")))
    with pytest.raises(RuntimeError, match="assert"):
        engine.step(model, batch)
    monkeypatch.setattr(pipelines.device, "responds", lambda device: False)
    with pytest.raises(DeviceLost):
        engine.step(model, batch)


def test_a_device_responds_unless_its_smallest_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    device = pick_device("cpu").torch_device
    assert responds(device)
    for error, alive in ((RuntimeError("CUDA error: unspecified launch failure"), False), (MEMORY, True)):
        monkeypatch.setattr(pipelines.device, "synchronize", failing(error))
        assert responds(device) is alive


MEMORY = torch.OutOfMemoryError("so full that not even one number fits")


# The scheduler, the thread and its watchdog


@pytest.mark.anyio
async def test_a_lost_device_ends_the_scheduler_and_every_image_with_it() -> None:
    engine = FakeEngine(step_seconds=0.001)
    gpu = WorkerThread("gpu")
    scheduler = Scheduler(engine, gpu, gpu, max_rows=2, queue_limit=10)
    worker = asyncio.create_task(scheduler.run())
    running, waiting = (scheduler.submit(entry(), request(steps=100_000, seed=seed)) for seed in range(2))
    while not engine.batches:
        await asyncio.sleep(0.001)
    engine.step = failing(LOST)  # type: ignore[method-assign]
    outcomes = await asyncio.gather(worker, running.future, waiting.future, return_exceptions=True)
    assert outcomes == [LOST] * 3
    gpu.close()


@pytest.mark.anyio
@pytest.mark.parametrize("verb", ["make_room", "place", "measure", "encode", "step"])
async def test_whatever_hangs_on_the_device_ends_the_scheduler(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(server.scheduling.verbs, "LEAST_PATIENCE", 0.05)
    monkeypatch.setattr(server.scheduling.cost, "LEAST_FIRST_SECONDS", 0.001)
    monkeypatch.setattr(server.scheduling.models, "LOAD_SECONDS", 0.001)
    monkeypatch.setattr(server.watchdog, "LOOK_SECONDS", 0.01)
    engine, gate = FakeEngine(), Gate()
    gate.close()
    monkeypatch.setattr(engine, verb, lambda *_: gate.enter())
    gpu, loader = WorkerThread("gpu"), WorkerThread("loader")
    scheduler = Scheduler(engine, gpu, loader, max_rows=2, queue_limit=10)
    ticket = scheduler.submit(entry(), request())
    async with asyncio.timeout(PATIENCE):
        ended, _, picture = await asyncio.gather(scheduler.run(), watch(gpu), ticket.future, return_exceptions=True)
    assert gate.reached.is_set()
    assert isinstance(ended, DeviceLost) and isinstance(picture, DeviceLost)
    gate.open()
    loader.close()


@pytest.mark.anyio
async def test_what_a_load_tells_of_its_progress_shows_that_the_device_gets_on() -> None:
    gpu, loader = WorkerThread("gpu"), WorkerThread("loader")
    begun_anew: dict[LoadStage, bool] = {}

    def told(progress: Progress, stage: LoadStage) -> None:
        before = gpu.present
        progress(stage, 0.5)
        begun_anew[stage] = gpu.present is not before

    class Telling(FakeEngine):
        def read(self, entry: ModelEntry, progress: Progress) -> str:
            told(progress, LoadStage.READING)
            return super().read(entry, progress)

        def place(self, entry: ModelEntry, family: Any, busy: Any, progress: Progress = untold) -> None:
            told(progress, LoadStage.PLACING)
            super().place(entry, family, busy, progress)

    scheduler = Scheduler(Telling(), gpu, loader, max_rows=2, queue_limit=10)
    working = asyncio.create_task(scheduler.run())
    await scheduler.load(entry())
    working.cancel()
    assert begun_anew == {LoadStage.READING: False, LoadStage.PLACING: True}, "the loader is another thread"
    gpu.close()
    loader.close()


@dataclass
class Clock:
    """The watchdog's, which goes on only when it is told to."""

    seconds: float = 0.0

    async def go_on(self, seconds: float) -> None:
        """So many seconds pass, with time before and after for the watchdog to look."""
        await asyncio.sleep(0.01)
        self.seconds += seconds
        await asyncio.sleep(0.01)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(server.watchdog, "monotonic", lambda: clock.seconds)
    monkeypatch.setattr(server.watchdog, "LOOK_SECONDS", 0.001)
    return clock


@pytest.mark.anyio
async def test_each_sign_that_work_gets_on_begins_its_patience_anew(clock: Clock) -> None:
    gpu, signs, noted = WorkerThread("gpu"), SimpleQueue[bool](), SimpleQueue[None]()
    watching = asyncio.create_task(watch(gpu))

    def work() -> None:
        while signs.get(timeout=PATIENCE):
            gpu.heartbeat()
            noted.put(None)

    working = asyncio.create_task(gpu.within(0.005, work))
    for _ in range(6):
        signs.put(True)
        await asyncio.to_thread(noted.get, timeout=PATIENCE)
        await clock.go_on(0.0015)
    assert not watching.done(), "9 ms in all, but never 5 without a sign"
    for _ in range(6):
        await clock.go_on(0.0015)
    with pytest.raises(DeviceLost, match="hangs"):
        await working
    assert watching.done()
    signs.put(False)
    gpu.close()


@pytest.mark.anyio
async def test_a_thread_that_was_given_up_raises_the_reason_to_all_who_come() -> None:
    gpu, gate = WorkerThread("gpu"), Gate()
    gate.close()
    working, queued, cancelled = (asyncio.create_task(gpu(gate.enter)) for _ in range(3))
    while gpu.present is None:
        await asyncio.sleep(0.001)
    cancelled.cancel()
    gpu.give_up(LOST)
    outcomes = await asyncio.gather(working, queued, cancelled, return_exceptions=True)
    assert outcomes[:2] == [LOST, LOST]
    assert isinstance(outcomes[2], asyncio.CancelledError), "whoever was cancelled is cancelled"
    with pytest.raises(DeviceLost):
        await gpu(print)
    gpu.close()  # and does not wait: the gate is still closed
    gate.open()


@pytest.mark.anyio
async def test_the_watchdog_ends_what_outlasts_its_patience_and_nothing_else(clock: Clock) -> None:
    gpu, gate = WorkerThread("gpu"), Gate()
    gate.close()
    watching = asyncio.create_task(watch(gpu))

    async def work(patience: float | None, asleep: float = 0.0) -> None:
        """Enter the gate for 20 looks, the clock going on a little before each, and for as long as told in between."""
        gate.close()
        entered = asyncio.create_task(gpu(gate.enter) if patience is None else gpu.within(patience, gate.enter))
        assert await asyncio.to_thread(gate.reached.wait, PATIENCE)
        for passed in (0.0015,) * 10 + (asleep,) + (0.0015,) * 10:
            await clock.go_on(passed)
        if watching.done():
            with pytest.raises(DeviceLost, match="hangs"):
                await entered
        else:
            gate.open()
            await entered

    await work(None)
    await work(1.0)
    await work(1.0, asleep=1000)
    assert not watching.done(), "a reading has no bound, work within its patience goes on, and sleep is not work"
    await work(0.005)
    assert watching.done()
    gate.open()
    gpu.close()


# The server


def test_a_device_that_is_lost_while_the_first_model_loads_is_told_too(tmp_path: Path) -> None:
    with serving(tmp_path, GatedEngine(failing={"fake": LOST})) as fake:
        eventually(lambda: httpx.get(fake.url + "/health").status_code == 503)
        assert httpx.get(fake.url + "/health").json() == {"status": "stopped", "reason": str(LOST)}
        assert fake.post().json()["error"]["code"] == "interrupted"


@dataclass
class HangingEngine(GatedEngine):
    """Hangs at the second step, until its gates are opened."""

    def step(self, entry: ModelEntry, batch: Sequence[Any]) -> list[Exception | None]:
        if any(image.evaluation == 1 for image in batch):
            self.gates["step"].close()
        return super().step(entry, batch)


@dataclass
class LosingEngine(GatedEngine):
    """Is lost at the second step of a prompt that has "poison" in it."""

    def step(self, entry: ModelEntry, batch: Sequence[Any]) -> list[Exception | None]:
        if any("poison" in image.request.prompt and image.evaluation == 1 for image in batch):
            raise LOST
        return super().step(entry, batch)


def wait_for_history(url: str, total: int) -> list[dict[str, Any]]:
    pictures: list[dict[str, Any]] = []

    def there() -> bool:
        pictures[:] = httpx.get(f"{url}/api/images/history").json()["images"]
        return len(pictures) == total

    eventually(there)
    return pictures


def marked(fake: FakeServer) -> list[tuple[Any, ...]]:
    return fake.rows("SELECT status, error_code, attempts, losses FROM jobs ORDER BY created_at")


@pytest.mark.parametrize("engine", [HangingEngine, LosingEngine])
def test_a_server_without_its_device_says_so_and_leaves_its_jobs_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Callable[[], GatedEngine]
) -> None:
    monkeypatch.setattr(server.watchdog, "LOOK_SECONDS", 0.02)
    with ThreadPoolExecutor() as pool, serving(tmp_path, engine(), max_rows=2) as fake:
        fake.engine.gates["encode"].close()
        first = pool.submit(fake.post, prompt="poison", n=2, output_format="webp", output_compression=40, seed=3)
        assert fake.engine.gates["encode"].reached.wait(PATIENCE)
        with calling(fake, prompt="gone"):
            eventually(lambda: fake.queue == 3)
        eventually(lambda: fake.queue == 2)
        monkeypatch.setattr(server.scheduling.verbs, "LEAST_PATIENCE", 0.2)
        fake.engine.gates["encode"].open()
        lost = first.result()
        (job_id,) = fake.rows("SELECT id FROM jobs WHERE prompt = 'poison'")[0]
        assert (lost.status_code, lost.json()["error"]["code"]) == (503, "engine_lost")
        assert lost.headers["x-should-retry"] == "false" and "Retry-After" not in lost.headers
        assert job_id in lost.json()["error"]["message"]
        assert (fake.post().status_code, fake.post().json()["error"]["code"]) == (503, "interrupted")
        for path in ("/health", "/ready"):
            answer = httpx.get(fake.url + path)
            assert answer.status_code == 503
            assert "The device" in answer.text, "and why"
        assert marked(fake) == [("pending", "engine_lost", 0, 1), ("cancelled", None, 0, 0)]
        fake.check_consistent()
    with serving(tmp_path) as again:
        pictures = wait_for_history(again.url, 2)
        assert marked(again)[0] == ("completed", None, 1, 1)
        assert {picture["parameters"]["seed"] for picture in pictures} == {3, 4}
        assert {picture["parameters"]["quality"] for picture in pictures} == {"medium"}
        assert all(picture["imageUrl"].endswith(".webp") for picture in pictures)
        again.check_consistent()


def test_a_job_that_was_still_waiting_is_left_to_the_next_run_and_not_blamed(tmp_path: Path) -> None:
    with ThreadPoolExecutor(10) as pool, serving(tmp_path, LosingEngine(resident_limit=1)) as fake:
        fake.engine.gates["step"].close()
        first = pool.submit(fake.post, prompt="poison")
        assert fake.engine.gates["step"].reached.wait(PATIENCE)
        others = [pool.submit(fake.post, prompt="waiting", model="other") for _ in range(9)]
        eventually(lambda: fake.queue == 10)
        fake.engine.gates["step"].open()
        codes = {call.result().json()["error"]["code"] for call in (first, *others)}
        assert codes == {"engine_lost"}
        rows = marked(fake)
        assert {row[:3] for row in rows} == {("pending", "engine_lost", 0)}
        assert [row[3] for row in rows] == [1] + [0] * 9
    with serving(tmp_path) as again:
        wait_for_history(again.url, 10)
        assert set(again.statuses) == {"completed"}
        *innocent, last = ({request.prompt for request in batch} for batch in again.engine.batches)
        assert last == {"poison"}, "the one that may have broken it goes last, and alone"
        assert {"waiting"} in innocent


def test_a_job_that_loses_every_engine_fails_at_last_and_takes_nobody_along(tmp_path: Path) -> None:
    for run in range(3):
        with ThreadPoolExecutor() as pool, serving(tmp_path, LosingEngine()) as fake:
            if run == 0:
                fake.engine.gates["encode"].close()
                for queued, prompt in enumerate(("poison", "harmless"), start=1):
                    pool.submit(fake.post, prompt=prompt)
                    eventually(lambda now=fake, want=queued: now.queue == want)
                fake.engine.open()
            eventually(lambda now=fake: "engine" in httpx.get(now.url + "/ready").json()["missing"])
            expected = "failed" if run == 2 else "pending"
            eventually(lambda now=fake, end=expected: now.rows(POISON)[0][0] == end)
    with serving(tmp_path, LosingEngine()) as fake:
        assert fake.rows(POISON) == [("failed", "engine_lost", 3)]
        wait_for_history(fake.url, 1)
        assert fake.post().status_code == 200


POISON = "SELECT status, error_code, losses FROM jobs WHERE prompt = 'poison'"


def leave(data: Path, change: Callable[[NewJob], NewJob] = lambda job: job) -> JobRecord:
    """A job as a run that lost its engine leaves it."""
    from dataclasses import replace

    from server.jobs.orders import Order, to_job

    async def write() -> JobRecord:
        database = await Database.open(data)
        store = JobStore(database)
        job = await store.insert(replace(change(to_job(Order("local", entry(), [request()]))), prompt="left"))
        left = await store.requeue(job.id, "the device hangs", lost=True)
        await database.close()
        return left

    return asyncio.run(write())


def test_a_job_whose_model_is_gone_or_changed_fails_with_the_reason(tmp_path: Path) -> None:
    from dataclasses import replace

    leave(tmp_path, lambda job: replace(job, model="vanished"))
    leave(tmp_path, lambda job: replace(job, request=job.request | {"images": [wide(job.request["images"][0])]}))
    leave(tmp_path, lambda job: replace(job, request={}))
    leave(tmp_path)
    with serving(tmp_path) as fake:
        eventually(lambda: "pending" not in fake.statuses and "processing" not in fake.statuses)
        rows = fake.rows("SELECT status, error_code, error_message FROM jobs ORDER BY created_at")
        assert [row[:2] for row in rows] == [
            ("failed", "model_not_found"),
            ("failed", "invalid_value"),
            ("failed", "server_error"),
            ("completed", None),
        ]
        assert "'vanished' does not exist" in rows[0][2] and "size 640x64:" in rows[1][2]


def wide(image: dict[str, Any]) -> dict[str, Any]:
    return image | {"width": 640}


def test_a_stop_keeps_the_promise_that_the_job_is_queued(tmp_path: Path) -> None:
    leave(tmp_path)
    engine = GatedEngine()
    engine.gates["step"].close()
    with serving(tmp_path, engine) as fake:
        assert fake.engine.gates["step"].reached.wait(PATIENCE)
        open_gates, fake.engine.open = fake.engine.open, lambda: None  # type: ignore[method-assign]
        fake.app.state.services.jobs.stop()
        eventually(lambda: marked(fake) == [("pending", "engine_lost", 0, 0)])
        open_gates()
    with serving(tmp_path) as again:
        wait_for_history(again.url, 1)


def test_who_waits_for_a_picture_goes_before_what_is_resumed(tmp_path: Path) -> None:
    leave(tmp_path)
    engine = GatedEngine()
    engine.gates["encode"].close()
    with ThreadPoolExecutor() as pool, serving(tmp_path, engine, queue_limit=1) as fake:
        assert engine.gates["encode"].reached.wait(PATIENCE)
        assert fake.post().json()["error"]["code"] == "queue_full"
        engine.open()
        wait_for_history(fake.url, 1)
        assert pool.submit(fake.post).result().status_code == 200


# The process


@contextmanager
def process(checkpoints: Path, data: Path, fault: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The real server with a fault planted, and its address."""
    arguments = [sys.executable, "-m", "tests.faulty_server", fault]
    environment = variables(checkpoints, DARKROOM_DATA=str(data))
    with (data.parent / f"{fault}.log").open("w+") as log:
        running = subprocess.Popen(arguments, stderr=log, env=environment)
        try:
            found: list[str] = []

            def open_for_all() -> bool:
                assert running.poll() is None, Path(log.name).read_text()
                found[:] = re.findall(r"Open (http://\S+)", Path(log.name).read_text())
                return bool(found)

            eventually(open_for_all, 2 * PATIENCE)
            yield running, found[0]
        finally:
            if running.poll() is None:
                os.kill(running.pid, signal.SIGKILL)
            running.wait()


@pytest.mark.parametrize("fault", ["lost", "hangs"])
def test_a_process_that_lost_its_device_exits_70_and_the_next_one_finishes_its_job(
    checkpoints: Path, tmp_path: Path, fault: str
) -> None:
    data = tmp_path / "data"
    with process(checkpoints, data, fault) as (running, url):
        body = {"prompt": "a hat", "seed": 11, "steps": 4}
        answer = httpx.post(url + GENERATIONS, json=body, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_lost"), answer.text
        assert running.wait(PATIENCE) == 70
    fake = FakeServer(0, GatedEngine(), data, None)  # type: ignore[arg-type]  # for its look into the database
    assert marked(fake) == [("pending", "engine_lost", 0, 1)]
    log = (tmp_path / f"{fault}.log").read_text()
    assert "CRITICAL" in log and ("hangs" in log if fault == "hangs" else "device-side assert" in log)
    with process(checkpoints, data, "none") as (running, url):
        (picture,) = wait_for_history(url, 1)
        assert picture["parameters"]["seed"] == 11
        assert httpx.get(url + picture["imageUrl"]).status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE) == 0
    assert marked(fake) == [("completed", None, 1, 1)]
