"""A wall clock that jumps: durations are the monotonic clock's, and nothing waits for a day that was taken back."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

import server.jobs.backoff
import server.jobs.runs
from storage.errors import DatabaseBusy
from tests.fake_server import PATIENCE, FakeServer, serving
from tests.faults.test_disk import completed, look, queued


class Clock(datetime):
    """The wall clock, moved."""

    moved = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> "Clock":
        return super().now(tz) + cls.moved


def jump(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(Clock, "moved", timedelta(seconds=seconds))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in ("storage.jobs", "server.jobs.runs", "server.jobs.keeping", "server.jobs.progress"):
        monkeypatch.setattr(f"{module}.datetime", Clock)
    with serving(tmp_path) as running:
        yield running


@pytest.mark.parametrize("seconds", [-3600, 86_400])
def test_a_jump_while_a_picture_is_made_shows_in_no_duration(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    fake.engine.gates["finish"].close()
    job = queued(fake)
    assert fake.engine.gates["finish"].reached.wait(PATIENCE)
    jump(monkeypatch, seconds)
    assert (look(fake, job)["estimatedTimeRemaining"] or 0) < 60
    fake.engine.open()
    image = completed(fake, job)["resultImages"][0]
    assert 0 <= image["generationTime"] < 60
    (told,) = httpx.get(fake.url + "/api/v1/prompts").json()["data"]["prompts"]
    assert 0 <= told["seconds"] < 60
    assert 0 <= httpx.get(fake.url + "/api/v1/queue").json()["data"]["averageWaitTime"] < 60
    assert fake.post().status_code == 200


@pytest.mark.parametrize("seconds", [-86_400, 86_400])
def test_a_job_that_is_due_later_waits_for_no_day_that_was_taken_back(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(server.jobs.backoff, "BACKOFF_SECONDS", 0.5)
    monkeypatch.setattr(server.jobs.runs, "MOST_BACKOFF_SECONDS", 0.5)
    keep, failures = server.jobs.runs.keep, [DatabaseBusy()]

    def keeping(*arguments: Any) -> Any:
        if failures:
            jump(monkeypatch, 0)
            raise failures.pop()
        return keep(*arguments)

    postpone = fake.app.state.services.jobs.store.postpone

    async def postponing(*arguments: Any, **options: Any) -> Any:
        job = await postpone(*arguments, **options)
        jump(monkeypatch, seconds)
        return job

    monkeypatch.setattr(server.jobs.runs, "keep", keeping)
    monkeypatch.setattr(fake.app.state.services.jobs.store, "postpone", postponing)
    assert completed(fake, queued(fake))["attempts"] == 2
