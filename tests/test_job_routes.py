"""Jobs over HTTP: handed in and fetched later, followed, cancelled, tried again, moved, paused, asked for twice."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import server.jobs.backoff
import server.jobs.runs
from pipelines.errors import ImageFailed
from server.jobs.events import Follower
from storage.errors import DatabaseBusy, DiskFull
from storage.files import MediaFiles
from storage.images import ImageStore
from tests.fake_server import PATIENCE, FakeServer, GatedEngine, calling, eventually, gate_before, serving


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeServer]:
    with serving(tmp_path / "data", GatedEngine(step_seconds=0.001)) as running:
        yield running


def submit(fake: FakeServer, headers: dict[str, str] | None = None, **fields: Any) -> str:
    body = {"prompt": "a hat", "steps": 4} | fields
    answer = httpx.post(fake.url + "/api/v1/images/generate", json=body, headers=headers, timeout=PATIENCE)
    assert answer.status_code == 202, answer.text
    found: str = answer.json()["data"]["job_id"]
    return found


def call(fake: FakeServer, method: str, path: str, status: int = 200, **options: Any) -> dict[str, Any]:
    answer = httpx.request(method, f"{fake.url}/api/v1{path}", timeout=PATIENCE, **options)
    assert answer.status_code == status, answer.text
    document: dict[str, Any] = answer.json()
    assert document["success"] is (status < 400)
    found: dict[str, Any] = document["data" if status < 400 else "error"]
    return found


def look(fake: FakeServer, job: str) -> dict[str, Any]:
    return call(fake, "GET", f"/jobs/{job}")


def ended(fake: FakeServer, job: str, status: str = "completed") -> dict[str, Any]:
    eventually(lambda: look(fake, job)["status"] == status)
    return look(fake, job)


def test_a_job_is_queued_and_its_pictures_fetched_later(fake: FakeServer) -> None:
    answer = httpx.post(fake.url + "/api/v1/images/generate", json={"prompt_text": "a hat", "n": 2, "cfg_scale": 4})
    data = answer.json()["data"]
    assert answer.headers["location"] == data["status_url"] == f"/api/v1/jobs/{data['job_id']}"
    assert data["prompt_id"] == data["job_id"] and data["events_url"] == data["status_url"] + "/events"
    job = ended(fake, data["job_id"])
    assert (job["progress"], job["attempts"], job["error"], job["prompt"]) == (100, 1, None, "a hat")
    assert [image["jobId"] for image in job["resultImages"]] == [job["id"]] * 2
    assert httpx.get(fake.url + job["resultImages"][0]["imageUrl"]).status_code == 200
    assert httpx.get(f"{fake.url}{data['status_url']}/status").json()["data"] == job
    fake.check_consistent()


def test_a_wrong_word_is_refused_on_either_route(fake: FakeServer) -> None:
    for path in ("/api/v1/images/generate", "/v1/images/generations"):
        answer = httpx.post(fake.url + path, json={"prompt": "a hat", "response_format": "file"})
        assert answer.json()["error"]["message"] == "response_format must be url or b64_json, not 'file'."


@pytest.mark.parametrize("asked", [{"json": {"async": True}}, {"headers": {"Prefer": "respond-async"}}])
def test_openai_s_route_answers_at_once_where_that_is_asked_for(fake: FakeServer, asked: dict[str, Any]) -> None:
    body = {"prompt": "a hat"} | asked.get("json", {})
    answer = httpx.post(fake.url + "/v1/images/generations", json=body, headers=asked.get("headers"))
    assert answer.status_code == 202
    assert ended(fake, answer.json()["data"]["job_id"])["resultImages"]


def test_how_far_a_job_is(fake: FakeServer) -> None:
    fake.post()  # the model is there
    gate = fake.engine.gates["step"]
    gate.close()
    first = submit(fake, steps=8)
    assert gate.reached.wait(PATIENCE)
    second = submit(fake, size="128x128")
    fake.engine.gates["encode"].close()
    facts = look(fake, first)
    assert (facts["status"], facts["currentStep"], facts["progress"]) == ("processing", "denoising 0/8", 0)
    assert facts["queuePosition"] is None and facts["estimatedTimeRemaining"] > 0 and facts["startedAt"]
    third = submit(fake, size="64x128")
    assert look(fake, third)["currentStep"] == "waiting in queue"
    places = [look(fake, job)["queuePosition"] for job in (second, third)]
    assert places in ([1, 2], [None, 1])
    fake.engine.open()
    assert [ended(fake, job)["currentStep"] for job in (first, second, third)] == ["completed"] * 3


def test_a_client_that_goes_takes_its_own_job_along_and_no_queued_one(fake: FakeServer) -> None:
    fake.engine.gates["step"].close()
    kept = submit(fake)
    with calling(fake):
        eventually(lambda: fake.queue == 2)
    eventually(lambda: fake.queue == 1)
    fake.engine.open()
    ended(fake, kept)
    assert sorted(fake.statuses) == ["cancelled", "completed"]


@pytest.mark.parametrize("way", ["DELETE", "POST", "PUT"])
def test_a_job_is_cancelled_and_tried_again(fake: FakeServer, way: str) -> None:
    fake.engine.gates["step"].close()
    job = submit(fake, steps=50)
    assert fake.engine.gates["step"].reached.wait(PATIENCE)
    if way == "PUT":
        done = call(fake, "PUT", f"/images/queue/{job}/status", json={"status": "cancelled"})
    else:
        done = call(fake, way, f"/jobs/{job}" + ("/cancel" if way == "POST" else ""))
    assert (done["status"], done["estimatedTimeRemaining"]) == ("cancelled", None)
    refused = call(fake, "DELETE", f"/jobs/{job}", 409)
    assert refused["code"] == "illegal_transition"
    assert refused["message"] == f"Job {job} is cancelled; only one that has not ended can be cancelled."
    fake.engine.open()
    eventually(lambda: fake.queue == 0)
    if way == "PUT":
        call(fake, "PUT", f"/images/queue/{job}/status", json={"status": "pending"})
    else:
        call(fake, "POST", f"/jobs/{job}/retry", 202)
    assert len(ended(fake, job)["resultImages"]) == 1
    refused = call(fake, "POST", f"/jobs/{job}/retry", 409)
    assert refused["code"] == "illegal_transition"
    assert refused["message"] == f"Job {job} is completed; only a failed or cancelled one can be tried again."
    fake.check_consistent()


def test_whoever_waits_for_a_job_hears_that_it_was_cancelled(fake: FakeServer) -> None:
    fake.engine.gates["step"].close()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(fake.post)
        assert fake.engine.gates["step"].reached.wait(PATIENCE)
        (job,) = call(fake, "GET", "/jobs")["jobs"]
        call(fake, "DELETE", f"/jobs/{job['id']}")
        fake.engine.open()
        answer = waiting.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "cancelled")
    assert answer.headers["x-should-retry"] == "false"


def test_priority_and_front_decide_who_is_next(fake: FakeServer) -> None:
    call(fake, "POST", "/queue/pause")
    first, second, third = (submit(fake, deterministic=True, prompt=name) for name in ("first", "second", "third"))
    assert [look(fake, job)["queuePosition"] for job in (first, second, third)] == [1, 2, 3]
    assert call(fake, "PATCH", f"/jobs/{third}", json={"position": "front"})["queuePosition"] == 1
    assert call(fake, "PATCH", f"/jobs/{second}", json={"priority": 3})["priority"] == 3
    assert [look(fake, job)["queuePosition"] for job in (first, second, third)] == [3, 1, 2]
    call(fake, "POST", "/queue/resume")
    for job in (first, second, third):
        ended(fake, job)
    assert list(dict.fromkeys(batch[0].prompt for batch in fake.engine.batches)) == ["second", "third", "first"]
    assert call(fake, "PATCH", f"/jobs/{first}", 409, json={"priority": 1})["code"] == "job_ended"


@pytest.mark.parametrize(
    ("body", "field"), [({}, "priority"), ({"priority": 11}, "priority"), ({"position": "back"}, "position")]
)
def test_a_change_that_is_none_is_refused(fake: FakeServer, body: dict[str, Any], field: str) -> None:
    job = submit(fake)
    assert call(fake, "PATCH", f"/jobs/{job}", 400, json=body)["field"] == field


def test_a_paused_queue_stays_paused_over_a_restart_and_goes_on_in_order(tmp_path: Path) -> None:
    with serving(tmp_path) as fake:
        call(fake, "POST", "/queue/pause")
        jobs = [submit(fake, deterministic=True, prompt=f"{number}", priority=number // 3) for number in range(6)]
        assert look(fake, jobs[0])["currentStep"] == "the queue is paused"
        assert look(fake, jobs[0])["estimatedTimeRemaining"] is None
        time.sleep(0.3)
        assert not fake.engine.batches
    with serving(tmp_path) as again:
        assert call(again, "GET", "/queue")["paused"] is True
        eventually(lambda: again.queue == 6)
        assert not again.engine.batches
        call(again, "POST", "/queue/resume")
        for job in jobs:
            assert ended(again, job)["attempts"] == 1
        order = list(dict.fromkeys(batch[0].prompt for batch in again.engine.batches))
        assert order == ["3", "4", "5", "0", "1", "2"]
        again.check_consistent()


def test_clearing_cancels_what_waits_and_not_what_is_processed(fake: FakeServer) -> None:
    fake.post()
    fake.engine.gates["step"].close()
    running = submit(fake)
    assert fake.engine.gates["step"].reached.wait(PATIENCE)
    call(fake, "POST", "/queue/pause")
    waiting = [submit(fake) for _ in range(3)]
    assert call(fake, "POST", "/queue/clear") == {"cancelled": 3}
    fake.engine.open()
    assert ended(fake, running)
    assert {look(fake, job)["status"] for job in waiting} == {"cancelled"}
    assert fake.queue == 0


def test_jobs_are_listed_newest_first_in_pages(fake: FakeServer) -> None:
    jobs = [submit(fake, session_id="a" if number % 2 else "b") for number in range(7)]
    for job in jobs:
        ended(fake, job)
    found, cursor = [], None
    while True:
        page = call(fake, "GET", "/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))
        assert page["pagination"]["total_items"] == 7
        found += [job["id"] for job in page["jobs"]]
        if (cursor := page["pagination"]["next_cursor"]) is None:
            break
    assert found == jobs[::-1]
    of_a = call(fake, "GET", "/jobs", params={"session_id": "a", "status": ["completed", "failed"]})["jobs"]
    assert [job["id"] for job in of_a] == jobs[5::-2]
    assert call(fake, "GET", "/jobs", params={"status": "pending"})["jobs"] == []
    assert call(fake, "GET", "/jobs", 400, params={"status": "done"})["field"] == "status"
    assert call(fake, "GET", "/jobs", 404, params={"cursor": "nobody"})["code"] == "not_found"
    assert call(fake, "GET", "/jobs/nobody", 404)["code"] == "not_found"


def test_fifty_requests_of_one_key_make_one_job(fake: FakeServer) -> None:
    key = {"Idempotency-Key": "k" * 255}
    with ThreadPoolExecutor(50) as pool:
        jobs = set(pool.map(lambda _: submit(fake, key), range(50)))
        (job,) = jobs
        waited = [pool.submit(fake.post_keyed, key, steps=4) for _ in range(3)]
        answers = [call.result() for call in waited]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["jobId"] for answer in answers} == {job}
    assert len(fake.statuses) == 1
    different = httpx.post(fake.url + "/api/v1/images/generate", json={"prompt": "another"}, headers=key)
    assert (different.status_code, different.json()["error"]["code"]) == (422, "idempotency_key_reused")
    long = httpx.post(
        fake.url + "/api/v1/images/generate", json={"prompt": "x"}, headers={"Idempotency-Key": "k" * 256}
    )
    assert long.status_code == 400


def test_of_those_who_wait_for_one_job_the_last_to_go_takes_it_along(fake: FakeServer) -> None:
    gate = fake.engine.gates["step"]
    gate.close()
    with ThreadPoolExecutor(1) as pool:
        stays = pool.submit(fake.post_keyed, {"Idempotency-Key": "k"})
        assert gate.reached.wait(PATIENCE)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                fake.url + "/v1/images/generations",
                json={"prompt": "a hat"},
                headers={"Idempotency-Key": "k"},
                timeout=0.3,
            )
        fake.engine.open()
        assert stays.result().status_code == 200
    assert fake.statuses == ["completed"]


def test_what_passes_by_itself_is_tried_again_and_what_does_not_is_not(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.jobs.backoff, "BACKOFF_SECONDS", 0.01)
    keep, failures = server.jobs.runs.keep, [DatabaseBusy(), DatabaseBusy()]

    def keeping(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return keep(*arguments)

    monkeypatch.setattr(server.jobs.runs, "keep", keeping)
    job = ended(fake, submit(fake))
    assert (job["attempts"], job["error"], len(job["resultImages"])) == (3, None, 1)
    failures += [DatabaseBusy()] * 3
    failed = ended(fake, submit(fake), "failed")
    assert (failed["attempts"], failed["error"]["code"]) == (3, "database_busy")
    failures.clear()
    fake.engine.failing["step doomed"] = ImageFailed("planted")
    failed = ended(fake, submit(fake, prompt="doomed"), "failed")
    assert (failed["attempts"], failed["error"]["code"]) == (1, "generation_failed")
    fake.check_consistent()


def test_a_job_that_waits_for_its_next_attempt_can_be_cancelled(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise DiskFull

    monkeypatch.setattr(server.jobs.runs, "keep", full)
    job = submit(fake)
    eventually(lambda: look(fake, job)["currentStep"] == "waiting for the next attempt")
    facts = look(fake, job)
    assert facts["dueAt"] and facts["error"]["code"] == "disk_full" and facts["status"] == "pending"
    call(fake, "DELETE", f"/jobs/{job}")
    assert look(fake, job)["status"] == "cancelled"
    eventually(lambda: not fake.app.state.services.jobs._tasks)


def follow(fake: FakeServer, path: str, found: list[tuple[str, dict[str, Any]]], **headers: str) -> threading.Thread:
    """Collect a stream's events on a thread of its own."""

    def read() -> None:
        with httpx.stream("GET", fake.url + path, timeout=PATIENCE, headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            event = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                if line.startswith("data: "):
                    found.append((event, json.loads(line.removeprefix("data: "))))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def test_a_job_s_events_come_in_order_and_end_with_it(fake: FakeServer) -> None:
    gate = fake.engine.gates["step"]
    gate.close()
    job = submit(fake, steps=30)
    events: list[tuple[str, dict[str, Any]]] = []
    reading = follow(fake, f"/api/v1/jobs/{job}/events?previews=true", events)
    eventually(lambda: events)
    fake.engine.step_seconds = 0.02
    gate.open()
    reading.join(PATIENCE)
    kinds = [kind for kind, _ in events]
    assert kinds[0] in ("queued", "started") and kinds[-1] == "completed" and "progress" in kinds
    assert len(events[-1][1]["resultImages"]) == 1
    steps = [data["progress"] for kind, data in events if kind == "progress"]
    assert steps == sorted(steps) and len(set(steps)) > 2
    late: list[tuple[str, dict[str, Any]]] = []
    follow(fake, f"/api/v1/jobs/{job}/events", late).join(PATIENCE)
    assert [kind for kind, _ in late] == ["completed"], "a late subscriber hears the present state"
    assert httpx.get(fake.url + "/api/v1/jobs/nobody/events").status_code == 404


def test_a_job_that_ends_while_it_is_looked_at_does_not_begin_anew(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = fake.engine.gates["step"]
    step.close()
    job = submit(fake)
    eventually(lambda: look(fake, job)["status"] == "processing")
    looking = gate_before(monkeypatch, ImageStore, "of_jobs")
    with ThreadPoolExecutor() as pool:
        told = pool.submit(look, fake, job)
        assert looking.reached.wait(PATIENCE)
        step.open()
        eventually(lambda: fake.app.state.services.jobs.find(job) is None)
        looking.open()
    facts = told.result()
    assert (facts["status"], facts["progress"], facts["currentStep"]) == ("processing", 99, "saving")


def test_all_jobs_are_followed_and_what_was_missed_is_told(fake: FakeServer) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    follow(fake, "/api/v1/events", events)
    first = submit(fake)
    eventually(lambda: ("completed", first) in [(kind, data["id"]) for kind, data in events])
    seen = str(time.time_ns() // 1000)
    second = submit(fake)
    ended(fake, second)
    missed: list[tuple[str, dict[str, Any]]] = []
    follow(fake, "/api/v1/events", missed, **{"Last-Event-ID": seen})
    eventually(lambda: missed)
    assert [(kind, data["id"]) for kind, data in missed] == [("completed", second)]


def test_a_websocket_tells_the_same_and_only_to_our_own_pages(fake: FakeServer) -> None:
    address = f"ws://127.0.0.1:{fake.port}/ws"
    with connect(address) as socket:
        job = submit(fake)
        told = []
        while not told or told[-1]["type"] != "completed":
            told.append(json.loads(socket.recv(timeout=PATIENCE)))
    assert {message["data"]["id"] for message in told if message["type"] != "idle"} == {job}
    with pytest.raises(InvalidStatus):
        connect(address, origin="http://evil.example").close()  # type: ignore[arg-type]
    with connect(f"{address}?job={job}") as socket:
        assert json.loads(socket.recv(timeout=PATIENCE))["type"] == "completed"
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=PATIENCE)


def test_a_reader_that_does_not_read_costs_no_memory_and_no_step(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear, waiting = Follower.hear, list[int]()

    def heard(follower: Follower, owner_id: str, job_id: str) -> None:
        hear(follower, owner_id, job_id)
        waiting.append(len(follower._changed))

    monkeypatch.setattr(Follower, "hear", heard)
    with httpx.stream("GET", fake.url + "/api/v1/events", timeout=PATIENCE):  # and never looks at it
        jobs = [submit(fake, steps=20) for _ in range(5)]
        for job in jobs:
            ended(fake, job)
    assert max(waiting) <= len(jobs) < len(waiting), "one mark a job, however often it changes"
    eventually(lambda: not fake.app.state.services.feed._events._followers)


def test_streams_end_when_the_server_stops(tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    with serving(tmp_path, grace=5) as fake:
        reading = follow(fake, "/api/v1/events", events)
        eventually(lambda: fake.app.state.services.feed._events._followers)
        began = time.monotonic()
    reading.join(PATIENCE)
    assert not reading.is_alive() and time.monotonic() - began < PATIENCE


def test_a_key_whose_pictures_were_deleted_says_so(fake: FakeServer) -> None:
    made = fake.post_keyed({"Idempotency-Key": "one"}).json()
    httpx.delete(f"{fake.url}/api/images/{made['id']}")
    again = fake.post_keyed({"Idempotency-Key": "one"})
    assert (again.status_code, again.json()["error"]["code"]) == (404, "not_found")
    assert "were deleted" in again.json()["error"]["message"] and again.headers.get("x-should-retry") != "true"


def test_a_job_tried_again_while_its_former_attempt_ends_is_one_run(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are still being written when it is cancelled and queued anew: the new run begins after the old one."""
    gate = gate_before(monkeypatch, MediaFiles, "save")
    job = submit(fake)
    assert gate.reached.wait(PATIENCE)
    call(fake, "DELETE", f"/jobs/{job}")
    with ThreadPoolExecutor() as pool:
        again = [pool.submit(httpx.post, f"{fake.url}/api/v1/jobs/{job}/retry", timeout=PATIENCE) for _ in range(3)]
        time.sleep(0.3)
        gate.open()
        assert sorted(answer.result().status_code for answer in again) == [202, 409, 409]
    ended(fake, job)
    desk = fake.app.state.services.jobs
    eventually(lambda: desk.find(job) is None)
    assert fake.rows("SELECT count(*) FROM images") == [(1,)]
    fake.check_consistent()
