"""Figures of jobs and images: by owner, by model, by day, and their percentiles."""

import statistics
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from pipelines.errors import ImageFailed
from storage.database import Database
from storage.jobs import JobStore
from storage.records import JobStatus
from storage.stats import Stats
from tests.fake_server import serving
from tests.storage_fakes import finished_job, new_image, new_job, opened

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


async def filled(database: Database) -> list[float]:
    """Forty images of ann's in two models on two days, one of bob's; the seconds of ann's."""
    seconds = [float(number * number % 41) for number in range(40)]
    today = datetime.now(UTC)
    for number, each in enumerate(seconds):
        created = today - timedelta(days=number % 2)
        model = "rare" if number % 4 == 0 else "usual"
        image = new_image(
            generation_seconds=each, model=model, created_at=created, cost=0.5, width=64, height=32, steps=10
        )
        await finished_job(database, image)
    await finished_job(database, new_image(generation_seconds=1000.0), owner_id="bob")
    return seconds


@pytest.mark.anyio
async def test_totals_are_the_owner_s_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        seconds = await filled(database)
        jobs = JobStore(database)
        failed, cancelled = await jobs.insert(new_job()), await jobs.insert(new_job())
        await jobs.fail(failed.id, "x", "y")
        await jobs.cancel("ann", cancelled.id)
        totals = await Stats(database).totals("ann", LONG_AGO)
        assert totals.jobs == {JobStatus.COMPLETED: 40, JobStatus.FAILED: 1, JobStatus.CANCELLED: 1}
        assert totals.success_rate == pytest.approx(40 / 41)
        assert (totals.images, totals.cost, totals.pixel_steps) == (40, 20.0, 40 * 64 * 32 * 10)
        assert totals.device_seconds == pytest.approx(sum(seconds))
        ranked = sorted(seconds)
        assert totals.seconds.mean == pytest.approx(statistics.mean(seconds))
        assert totals.seconds.percentiles == {50: ranked[19], 95: ranked[37], 99: ranked[39]}
        assert (await Stats(database).totals(None, LONG_AGO)).images == 41


@pytest.mark.anyio
async def test_models_and_days(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        await filled(database)
        stats = Stats(database)
        assert await stats.models("ann", LONG_AGO) == [("usual", 30), ("rare", 10)]
        assert (await stats.totals("ann", LONG_AGO, "rare")).images == 10
        days = await stats.days("ann", LONG_AGO)
        assert [(day.images, day.cost) for day in days] == [(20, 10.0), (20, 10.0)]
        assert days[1].date - days[0].date == timedelta(days=1)
        assert (await stats.totals("ann", datetime.now(UTC) - timedelta(hours=12))).images == 20
        ann, bob = await stats.owners(LONG_AGO)
        assert (ann.name, ann.jobs, ann.images, ann.cost, ann.pixel_steps) == ("ann", 40, 40, 20.0, 40 * 64 * 32 * 10)
        assert (bob.name, bob.jobs, bob.images, bob.device_seconds) == ("bob", 1, 1, 1000.0)


@pytest.mark.anyio
async def test_where_there_is_nothing_there_are_no_figures(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        totals = await Stats(database).totals("nobody", LONG_AGO)
    assert (totals.jobs, totals.images, totals.cost, totals.success_rate) == ({}, 0, 0, None)
    assert totals.seconds.mean is None and set(totals.seconds.percentiles.values()) == {None}


def test_the_figures_over_http(tmp_path: Path) -> None:
    with serving(tmp_path) as fake:
        empty = httpx.get(fake.url + "/api/v1/stats").json()["data"]
        assert (empty["jobs"], empty["successRate"], empty["perDay"]) == (0, None, [])
        fake.engine.failing["step doomed"] = ImageFailed("planted")
        fake.post(n=3)
        fake.post(prompt="doomed")
        found = httpx.get(fake.url + "/api/v1/stats").json()["data"]
        assert (found["jobs"], found["images"], found["successRate"]) == (2, 3, 0.5)
        assert found["jobsByStatus"] == {"completed": 1, "failed": 1}
        assert found["popularModels"] == [{"model": "fake", "images": 3}] and len(found["perDay"]) == 1
        assert set(found["generationSeconds"]) == {"mean", "p50", "p95", "p99"}
        (model,) = httpx.get(fake.url + "/api/v1/stats/models").json()["data"]["models"]
        assert (model["model"], model["images"]) == ("fake", 3)
        usage = httpx.get(fake.url + "/api/v1/usage?days=1").json()["data"]
        assert (usage["jobs"], usage["images"], usage["owner"]) == (2, 3, "local") and usage["megapixelSteps"] > 0
        prompts = httpx.get(fake.url + "/api/v1/prompts").json()["data"]
        assert [(one["prompt"], one["status"], len(one["imageUrls"])) for one in prompts["prompts"]] == [
            ("doomed", "failed", 0),
            ("a hat", "completed", 3),
        ]
        assert prompts["pagination"] == {"total_items": 2, "next_cursor": None}
        assert httpx.get(fake.url + "/api/v1/stats?days=0").status_code == 400
