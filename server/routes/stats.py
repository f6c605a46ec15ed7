"""Figures: what was made, how long it took, what it cost; and the history of prompts."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter

from server.identity.caller import Caller
from server.playground import iso
from server.state import Services
from storage.records import ImageRecord, JobQuery, JobRecord
from storage.stats import Seconds, Totals

Days = Annotated[int, QueryParameter(ge=1, le=3650)]


class Stats(Controller):
    """The application's paths about what was done so far."""

    path = "/api/v1"
    tags = ["stats"]

    @get("/stats")
    async def stats(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], days: Days = 30
    ) -> dict[str, Any]:
        """Totals of the last days, the models used most, and each day."""
        since = _since(days)
        totals = await services.stats.totals(caller.owner_id, since)
        models = await services.stats.models(caller.owner_id, since)
        found = await services.stats.days(caller.owner_id, since)
        data = _totals(totals) | {
            "days": days,
            "popularModels": [{"model": model, "images": count} for model, count in models[:10]],
            "perDay": [{"date": day.date.isoformat(), "images": day.images, "cost": day.cost} for day in found],
        }
        return {"success": True, "data": data}

    @get("/stats/models")
    async def models(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], days: Days = 30
    ) -> dict[str, Any]:
        """The same for each model, the one used most first."""
        since = _since(days)
        models = [
            {"model": model} | _totals(await services.stats.totals(caller.owner_id, since, model))
            for model, _ in await services.stats.models(caller.owner_id, since)
        ]
        return {"success": True, "data": {"days": days, "models": models}}

    @get("/usage")
    async def usage(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], days: Days = 30
    ) -> dict[str, Any]:
        """What the caller used of the server."""
        totals = await services.stats.totals(caller.owner_id, _since(days))
        data = {
            "owner": caller.owner_id,
            "days": days,
            "jobs": sum(totals.jobs.values()),
            "images": totals.images,
            "pictureSeconds": round(totals.device_seconds, 3),
            "megapixelSteps": round(totals.pixel_steps / 1e6, 3),
            "cost": totals.cost,
        }
        return {"success": True, "data": data}

    @get("/prompts")
    async def prompts(
        self,
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        session_id: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: FromQuery[str | None] = None,
    ) -> dict[str, Any]:
        """The caller's prompts, newest first, and what came of each."""
        query = JobQuery(owner_id=caller.owner_id, session_id=session_id, limit=limit, cursor=cursor)
        page = await services.jobs.lists.page(query)
        images = await services.jobs.images.of_jobs([job.id for job in page.jobs])
        prompts = [_prompt(job, images.get(job.id, [])) for job in page.jobs]
        pagination = {"total_items": page.total, "next_cursor": page.cursor}
        return {"success": True, "data": {"prompts": prompts, "pagination": pagination}}


def _since(days: int) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def _totals(totals: Totals) -> dict[str, Any]:
    return {
        "jobs": sum(totals.jobs.values()),
        "jobsByStatus": totals.jobs,
        "successRate": totals.success_rate,
        "images": totals.images,
        "cost": totals.cost,
        "generationSeconds": _seconds(totals.seconds),
    }


def _seconds(seconds: Seconds) -> dict[str, float | None]:
    told = {"mean": seconds.mean} | {f"p{percent}": value for percent, value in seconds.percentiles.items()}
    return {name: _rounded(value) for name, value in told.items()}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _prompt(job: JobRecord, images: list[ImageRecord]) -> dict[str, Any]:
    return {
        "id": job.id,
        "prompt": job.prompt,
        "negativePrompt": job.negative_prompt,
        "model": job.model,
        "status": job.status,
        "cost": job.cost,
        "seconds": _rounded((job.outcome or {}).get("seconds")),
        "imageUrls": [image.media_name.url_path for image in images],
        "thumbnailUrls": [image.thumbnail_name.url_path for image in images],
        "createdAt": iso(job.created_at),
    }
