"""A job ends exactly once, whatever happens: failures, hang-ups at every moment, a stop, a crash before."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import server.scheduling.loop
from pipelines.errors import CheckpointError, NotANumber
from storage.database import Database
from storage.errors import DatabaseBusy, DiskFull
from storage.files import MediaFiles
from storage.images import ImageStore
from storage.jobs import JobStore
from storage.records import NewJob
from tests.fake_server import PATIENCE, FakeServer, Gate, GatedEngine, calling, eventually, gate_before, serving


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeServer]:
    with serving(tmp_path, queue_limit=3) as running:
        yield running


def failing(error: Exception) -> Any:
    async def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("verb", ["encode", "step", "finish"])
def test_a_hang_up_while_the_device_works_frees_the_rows_at_once(fake: FakeServer, verb: str) -> None:
    fake.engine.gates[verb].close()
    with calling(fake, n=2):
        assert fake.engine.gates[verb].reached.wait(PATIENCE)
    eventually(lambda: fake.statuses == ["cancelled"])
    assert fake.queue == 0, "the gate is still closed: nothing had to be waited for"
    fake.engine.open()
    assert fake.post().status_code == 200
    fake.check_consistent()


def test_a_hang_up_while_queued_leaves_the_others_alone(fake: FakeServer) -> None:
    fake.engine.gates["encode"].close()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fake.post)
        assert fake.engine.gates["encode"].reached.wait(PATIENCE)
        with calling(fake, prompt="second"):
            eventually(lambda: fake.queue == 2)
        eventually(lambda: fake.statuses == ["processing", "cancelled"] or fake.statuses == ["pending", "cancelled"])
        fake.engine.open()
        assert first.result().status_code == 200
    assert fake.statuses == ["completed", "cancelled"]
    assert all(request.prompt != "second" for batch in fake.engine.batches for request in batch)


@pytest.mark.parametrize(
    ("owner", "method"), [(JobStore, "insert"), (JobStore, "start"), (MediaFiles, "save"), (JobStore, "cancel")]
)
def test_a_hang_up_while_something_is_written_cancels_and_leaves_no_file(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    gate = gate_before(monkeypatch, owner, method)
    if method == "cancel":
        fake.engine.gates["step"].close()
    with calling(fake, n=2):
        if method == "cancel":
            assert fake.engine.gates["step"].reached.wait(PATIENCE)
        else:
            assert gate.reached.wait(PATIENCE)
    assert gate.reached.wait(PATIENCE)
    eventually(lambda: fake.queue == 0)
    gate.open()
    eventually(lambda: fake.statuses == ["cancelled"])
    eventually(lambda: not list((fake.data / "media").rglob("*.png")))
    fake.check_consistent()


def test_a_hang_up_during_the_commit_loses_nothing(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_before(monkeypatch, JobStore, "complete")
    with calling(fake, n=2):
        assert gate.reached.wait(PATIENCE)
    gate.open()
    eventually(lambda: fake.statuses == ["completed"])
    assert len(fake.rows("SELECT id FROM images")) == 2
    fake.check_consistent()


def test_a_hang_up_removes_the_files_of_siblings_already_written(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, original = Gate(), MediaFiles.save
    gate.close()

    def save(*args: Any) -> Any:
        if list((fake.data / "media" / "generated_images").rglob("*.png")):
            gate.enter()
        return original(*args)

    monkeypatch.setattr(MediaFiles, "save", save)
    monkeypatch.setattr(server.scheduling.loop.policy, "DECODE_PIXELS", 1)
    fake.engine.gates["finish"].close()
    with calling(fake, n=2):
        assert fake.engine.gates["finish"].reached.wait(PATIENCE)
        fake.engine.open()
        eventually(lambda: len(list((fake.data / "media" / "generated_images").rglob("*.png"))) > 0)
    eventually(lambda: fake.queue == 0)
    gate.open()
    eventually(lambda: fake.statuses in (["cancelled"], ["completed"]))
    eventually(lambda: fake.statuses == ["completed"] or not list((fake.data / "media").rglob("*.png")))
    fake.check_consistent()


def test_some_images_may_fail(fake: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    fake.engine.failing_seeds[6] = NotANumber("the picture came out as not-a-number.")
    answer = fake.post(n=3, seed=5)
    assert answer.status_code == 200
    assert [item["seed"] for item in answer.json()["data"]] == [5, 7]
    assert answer.json()["warnings"] == ["image 1 failed: the picture came out as not-a-number."]
    assert fake.rows("SELECT status, error_code FROM jobs") == [("completed", "partly_failed")]
    told = [record for record in caplog.records if "not-a-number" in f"{record.getMessage()} {record.exc_info}"]
    assert len(told) == 1, "one cause is one line"
    fake.check_consistent()


def test_when_all_images_fail_the_first_error_is_the_answer(fake: FakeServer) -> None:
    fake.engine.failing_seeds |= {5: NotANumber("the first."), 6: RuntimeError("the second.")}
    answer = fake.post(n=2, seed=5)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_failed")
    assert answer.json()["error"]["message"] == "the first."
    assert answer.headers["x-should-retry"] == "false"
    assert fake.rows("SELECT status, error_code, error_message FROM jobs") == [
        ("failed", "generation_failed", "the first.")
    ]


@pytest.mark.parametrize("verb", ["encode", "begin", "step", "finish"])
def test_an_unforeseen_error_ends_one_request_and_never_the_scheduler(
    fake: FakeServer, verb: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as broken:

        def fail(*args: Any) -> Any:
            raise RuntimeError("/home/somebody/secret.py")

        broken.setattr(fake.engine, verb, fail)
        answer = fake.post()
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "server_error")
    assert "secret" not in answer.text
    logged = [record for record in caplog.records if answer.headers["x-request-id"] in record.getMessage()]
    assert logged and logged[0].exc_info, "the log must tell under the request's id"
    assert fake.post().status_code == 200
    assert fake.statuses == ["failed", "completed"]


@pytest.mark.parametrize(
    ("owner", "method", "error", "code"),
    [
        (JobStore, "insert", DatabaseBusy(), "database_busy"),
        (JobStore, "start", DiskFull(), "disk_full"),
        (JobStore, "complete", DiskFull(), "disk_full"),
        (JobStore, "complete", RuntimeError("?"), "server_error"),
    ],
)
def test_storage_failing_ends_the_job_and_leaves_no_file(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, error: Exception, code: str
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(owner, method, failing(error))
        answer = fake.post()
    assert answer.json()["error"]["code"] == code
    if code != "server_error":
        assert answer.status_code == 503
        assert 1 <= int(answer.headers["Retry-After"]) <= 120
    assert fake.statuses == ([] if method == "insert" else ["failed"])
    assert not list((fake.data / "media").rglob("*.png"))
    assert fake.queue == 0
    assert fake.post().status_code == 200


def test_a_disk_that_is_full_when_the_picture_is_saved(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise DiskFull

    with monkeypatch.context() as broken:
        broken.setattr(MediaFiles, "save", full)
        assert fake.post(n=2).json()["error"]["code"] == "disk_full"
    assert fake.post(n=2).status_code == 200
    assert fake.statuses == ["failed", "completed"]


def test_an_error_after_the_commit_keeps_the_pictures(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(ImageStore, "of_job", failing(DatabaseBusy()))
        assert fake.post().status_code == 503
    assert fake.statuses == ["completed"]
    fake.check_consistent()


def test_a_full_queue_is_told_before_any_row_is_written(fake: FakeServer) -> None:
    fake.engine.gates["step"].close()
    with ThreadPoolExecutor(10) as pool:
        calls = [pool.submit(fake.post) for _ in range(10)]
        eventually(lambda: sum(call.done() for call in calls) == 7)
        refused = [call.result() for call in calls if call.done()]
        eventually(lambda: len(fake.statuses) == 3)
        fake.engine.open()
    assert sorted(call.result().status_code for call in calls) == [200] * 3 + [503] * 7
    for answer in refused:
        assert answer.json()["error"]["code"] == "queue_full"
        assert 1 <= int(answer.headers["Retry-After"]) <= 120
        assert "x-should-retry" not in answer.headers
    assert fake.statuses == ["completed"] * 3


def test_a_broken_model_is_listed_and_harms_nobody(fake: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    fake.engine.failing["broken"] = CheckpointError("/somewhere/secret is truncated")
    answer = fake.post(model="broken", n=2)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unavailable")
    assert answer.headers["x-should-retry"] == "false"
    assert "'broken'" in answer.json()["error"]["message"]
    ready = httpx.get(fake.url + "/ready")
    assert (ready.status_code, ready.json()["broken_models"]) == (200, ["broken"])
    assert "secret" not in answer.text + ready.text + str(fake.rows("SELECT * FROM jobs"))
    assert "/somewhere/secret is truncated" in caplog.text
    assert fake.post(model="other").status_code == 200
    del fake.engine.failing["broken"]
    assert fake.post(model="broken").status_code == 200
    assert httpx.get(fake.url + "/ready").json()["broken_models"] == []


def test_a_broken_default_model_makes_the_server_unready_until_it_loads(tmp_path: Path) -> None:
    engine = GatedEngine(failing={"fake": CheckpointError("/somewhere/secret")})
    with serving(tmp_path, engine) as fake:
        eventually(lambda: "cannot" in httpx.get(fake.url + "/ready").text)
        ready = httpx.get(fake.url + "/ready")
        assert ready.status_code == 503
        assert "secret" not in ready.text
        assert fake.post(model="other").status_code == 200
        engine.failing.clear()
        assert fake.post().status_code == 200
        assert httpx.get(fake.url + "/ready").status_code == 200


def test_what_a_dead_run_left_open_ends_as_interrupted(tmp_path: Path) -> None:
    async def die() -> None:
        database = await Database.open(tmp_path)
        store = JobStore(database)
        new = NewJob(owner_id="local", request={}, prompt="a hat", model="fake")
        await store.insert(new)
        started = await store.insert(new)
        await store.start(started.id, "a boot of old")
        await database.close()

    asyncio.run(die())
    with serving(tmp_path) as fake:
        assert fake.rows("SELECT status, error_code FROM jobs") == [("failed", "interrupted")] * 2


def test_a_stop_ends_what_is_under_way(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool, serving(tmp_path) as fake:
        fake.engine.gates["step"].close()
        call = pool.submit(fake.post)
        assert fake.engine.gates["step"].reached.wait(PATIENCE)
        # The device is busy until the caller has heard of the stop: only then may the step come to its end.
        open_gates = fake.engine.open
        fake.engine.open = lambda: None  # type: ignore[method-assign]
        call.add_done_callback(lambda _: open_gates())
    heard = call.result()
    assert (heard.status_code, heard.json()["error"]["code"]) == (503, "interrupted")
    with serving(tmp_path) as again:
        assert again.rows("SELECT status, error_code FROM jobs") == [("failed", "interrupted")]
        again.check_consistent()


def stopping(fake: FakeServer) -> bool:
    return "stopping" in httpx.get(fake.url + "/ready").json()["missing"]


def test_a_stop_lets_pictures_come_to_their_end_while_new_ones_are_refused(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool, serving(tmp_path, grace=PATIENCE) as fake:
        fake.engine.gates["step"].close()
        begun = pool.submit(fake.post)
        assert fake.engine.gates["step"].reached.wait(PATIENCE)
        httpx.post(fake.url + "/api/v1/queue/pause")
        waiting = pool.submit(fake.post)
        later = httpx.post(fake.url + "/api/v1/images/generate", json={"prompt": "a hat"}).json()["data"]["job_id"]
        eventually(lambda: fake.queue == 3)
        open_gates, refused = fake.engine.open, []

        def open_once_it_stops() -> None:
            eventually(lambda: stopping(fake))
            refused.append(fake.post())
            refused.append(waiting.result(PATIENCE))
            assert httpx.get(fake.url + "/health").status_code == 200
            open_gates()

        fake.engine.open = open_once_it_stops  # type: ignore[method-assign]
    assert begun.result().status_code == 200
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in refused] == [(503, "interrupted")] * 2
    said = [answer.json()["error"]["message"].partition(".")[0] for answer in refused]
    assert said == ["The server is stopping and takes no new work", "The server stopped before the job was done"]
    with serving(tmp_path) as again:
        assert sorted(again.statuses) == ["completed", "failed", "pending"]
        httpx.post(again.url + "/api/v1/queue/resume")
        status = f"{again.url}/api/v1/jobs/{later}"
        eventually(lambda: httpx.get(status).json()["data"]["status"] == "completed")
        assert httpx.get(status).json()["data"]["attempts"] == 1


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool, serving(tmp_path, grace=100 * PATIENCE) as fake:
        fake.engine.gates["step"].close()
        call = pool.submit(fake.post)
        assert fake.engine.gates["step"].reached.wait(PATIENCE)
        fake.signal()
        eventually(lambda: stopping(fake))
        # The block's end is the second one; the device is busy until the caller has heard.
        open_gates, fake.engine.open = fake.engine.open, lambda: None  # type: ignore[method-assign]
        call.add_done_callback(lambda _: open_gates())
    assert call.result().json()["error"]["code"] == "interrupted"


def test_when_the_scheduler_dies_nobody_waits_for_ever(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def ride(*args: Any) -> Any:
        raise AssertionError("a bug in the policy")

    with monkeypatch.context() as broken:
        broken.setattr(server.scheduling.loop.policy, "ride", ride)
        answer = fake.post()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "interrupted")
    assert fake.post().json()["error"]["code"] == "interrupted"
    assert "scheduler" in httpx.get(fake.url + "/ready").json()["missing"]
    assert httpx.get(fake.url + "/health").status_code == 503
    assert fake.rows("SELECT status, error_code FROM jobs") == [("failed", "interrupted")]


def test_users_share_the_device_though_one_of_them_asks_for_more(tmp_path: Path) -> None:
    with serving(tmp_path, GatedEngine(step_seconds=0.002)) as fake, ThreadPoolExecutor(20) as pool:
        fake.post()  # the model is there
        greedy = [pool.submit(fake.post, user="greedy", steps=30, deterministic=True) for _ in range(16)]
        eventually(lambda: fake.queue >= 12)
        assert fake.post(user="modest", steps=30, deterministic=True).status_code == 200
        assert sum(not call.done() for call in greedy) >= 6, "it waited for its share, not for everybody"


def test_an_answer_says_how_long_its_pictures_were_expected_to_take(fake: FakeServer) -> None:
    fake.post()  # the model is there, and what its work costs is known
    assert 0 < fake.post(n=2, steps=150).json()["estimatedTime"] < 10
