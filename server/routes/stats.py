"""Figures: what was made, how long it took, what it cost; and the history of prompts."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, TypedDict, cast

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter

from server.errors import Forbidden
from server.identity.caller import Caller
from server.identity.guard import OPERATOR
from server.identity.links import Links
from server.limits import OwnerLimits
from server.playground import iso
from server.routes.credits import owner_asked_for
from server.schemas import Moment, Pagination, Success, documents, says, success
from server.state import Services
from storage.errors import NotFound
from storage.money import to_amount
from storage.records import ImageRecord, JobQuery, JobRecord, JobStatus
from storage.stats import Seconds, Share, Totals

Days = Annotated[int, QueryParameter(ge=1, le=3650)]


class GenerationSeconds(TypedDict):
    """A picture's seconds from its first work to its last; null where there is none."""

    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class Figures(TypedDict):
    """What some jobs came to. Deleted pictures count, since they were made."""

    jobs: Annotated[int, says("How many there were.", minimum=0)]
    jobsByStatus: Annotated[dict[str, int], says("The same by their status.")]
    successRate: Annotated[
        float | None,
        says("The share of completed jobs among those completed or failed; null where none was.", minimum=0, maximum=1),
    ]
    images: Annotated[int, says("How many pictures were made.", minimum=0)]
    cost: Annotated[float, says("In the operator's currency.", minimum=0)]
    generationSeconds: GenerationSeconds


class ModelUse(TypedDict):
    """How much a model was used."""

    model: str
    images: Annotated[int, says("How many pictures it made.", minimum=0)]


class DayFigures(TypedDict):
    """One day, in UTC; those without a picture are left out."""

    date: Annotated[str, says("The day.", format="date")]
    images: Annotated[int, says("How many pictures were made.", minimum=0)]
    cost: Annotated[float, says("In the operator's currency.", minimum=0)]


class StatsFacts(Figures):
    """Totals of the last days."""

    days: Annotated[int, says("Of how many days.")]
    popularModels: Annotated[list[ModelUse], says("The ten used most.")]
    perDay: list[DayFigures]


class ModelFigures(Figures):
    """What the jobs of one model came to."""

    model: str


class ModelsStats(TypedDict):
    """The figures of each model, the one used most first."""

    days: Annotated[int, says("Of how many days.")]
    models: list[ModelFigures]


class Used(TypedDict):
    """What was used of the server."""

    jobs: Annotated[int, says("How many there were.", minimum=0)]
    images: Annotated[int, says("How many pictures were made.", minimum=0)]
    pictureSeconds: Annotated[float, says("Seconds from first work to last, of all pictures.", minimum=0)]
    megapixelSteps: Annotated[float, says("Megapixels times steps, of all pictures.", minimum=0)]
    cost: Annotated[float, says("In the operator's currency.", minimum=0)]


class UsedByKey(Used):
    """What was used with one key."""

    keyId: Annotated[str | None, says("The key's `id`; null where no key was sent.")]


class UsedByOwner(Used):
    """What one owner used."""

    owner: str


class Usage(UsedByOwner):
    """What an owner used of the server, and what is left to it."""

    days: Annotated[int, says("Of how many days.")]
    keys: Annotated[list[UsedByKey], says("The same by key.")]
    balance: Annotated[float, says("Its credit.")]
    limits: Annotated[OwnerLimits | None, says("Its limits; null for an operator, who has none.")]


class UsageOfAll(TypedDict):
    """What each owner used of the server."""

    days: Annotated[int, says("Of how many days.")]
    owners: list[UsedByOwner]


class PromptFacts(TypedDict):
    """A prompt and what came of it."""

    id: Annotated[str, says("Its job's.")]
    prompt: str
    negativePrompt: str
    model: str
    status: Annotated[JobStatus, says("Its job's.")]
    cost: Annotated[float, says("In the operator's currency.", minimum=0)]
    seconds: Annotated[float | None, says("From its beginning to its end.", minimum=0)]
    imageUrls: Annotated[list[str], says("The paths of its pictures on this server.")]
    thumbnailUrls: list[str]
    createdAt: Moment


class Prompts(TypedDict):
    """The caller's prompts, newest first."""

    prompts: list[PromptFacts]
    pagination: Pagination


class Stats(Controller):
    """The application's paths about what was done so far."""

    path = "/api/v1"
    tags = ["stats"]

    @get("/stats")
    async def stats(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], days: Days = 30
    ) -> Success[StatsFacts]:
        """Totals of the last days, the models used most, and each day."""
        since = _since(days)
        totals = await services.stats.totals(caller.owner_id, since)
        models = await services.stats.models(caller.owner_id, since)
        found = await services.stats.days(caller.owner_id, since)
        data: StatsFacts = {
            **_totals(totals),
            "days": days,
            "popularModels": [{"model": model, "images": count} for model, count in models[:10]],
            "perDay": [{"date": day.date.isoformat(), "images": day.images, "cost": day.cost} for day in found],
        }
        return success(data)

    @get("/stats/models")
    async def models(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], days: Days = 30
    ) -> Success[ModelsStats]:
        """The same for each model, the one used most first."""
        since = _since(days)
        models: list[ModelFigures] = [
            {"model": model, **_totals(await services.stats.totals(caller.owner_id, since, model))}
            for model, _ in await services.stats.models(caller.owner_id, since)
        ]
        return success(ModelsStats(days=days, models=models))

    @get("/usage", opt=documents(raises=(Forbidden,)))
    async def usage(
        self,
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        days: Days = 30,
        owner: FromQuery[str | None] = None,
    ) -> Success[Usage]:
        """What the caller used of the server, by key too, and what is left to it; for operators, anybody."""
        since = _since(days)
        owner_id = owner_asked_for(caller, owner)
        totals, keys = await services.stats.totals(owner_id, since), await services.stats.keys(owner_id, since)
        unlimited = caller.is_operator and owner_id == caller.owner_id
        data: Usage = {
            "owner": owner_id,
            "days": days,
            "jobs": sum(totals.jobs.values()),
            "images": totals.images,
            "pictureSeconds": round(totals.device_seconds, 3),
            "megapixelSteps": round(totals.pixel_steps / 1e6, 3),
            "cost": totals.cost,
            "keys": [{"keyId": share.name, **_used(share)} for share in keys],
            "balance": to_amount(await services.credits.balance(owner_id)),
            "limits": None if unlimited else await services.allowances.told(owner_id),
        }
        return success(data)

    @get("/usage/owners", opt=OPERATOR)
    async def owners(self, services: NamedDependency[Services], days: Days = 30) -> Success[UsageOfAll]:
        """What each owner used of the server."""
        found = await services.stats.owners(_since(days))
        return success(UsageOfAll(days=days, owners=[{"owner": str(share.name), **_used(share)} for share in found]))

    @get("/prompts", opt=documents(raises=(NotFound,)))
    async def prompts(
        self,
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        session_id: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: FromQuery[str | None] = None,
    ) -> Success[Prompts]:
        """The caller's prompts, newest first, and what came of each."""
        query = JobQuery(owner_id=caller.owner_id, session_id=session_id, limit=limit, cursor=cursor)
        page = await services.jobs.lists.page(query)
        images = await services.jobs.images.of_jobs([job.id for job in page.jobs])
        prompts = [_prompt(job, images.get(job.id, []), services.links) for job in page.jobs]
        pagination: Pagination = {"total_items": page.total, "next_cursor": page.cursor}
        return success(Prompts(prompts=prompts, pagination=pagination))


def _since(days: int) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def _totals(totals: Totals) -> Figures:
    return {
        "jobs": sum(totals.jobs.values()),
        "jobsByStatus": {status.value: count for status, count in totals.jobs.items()},
        "successRate": totals.success_rate,
        "images": totals.images,
        "cost": totals.cost,
        "generationSeconds": _seconds(totals.seconds),
    }


def _used(share: Share) -> Used:
    return {
        "jobs": share.jobs,
        "images": share.images,
        "pictureSeconds": round(share.device_seconds, 3),
        "megapixelSteps": round(share.pixel_steps / 1e6, 3),
        "cost": share.cost,
    }


def _seconds(seconds: Seconds) -> GenerationSeconds:
    told = {"mean": seconds.mean} | {f"p{percent}": value for percent, value in seconds.percentiles.items()}
    return cast(GenerationSeconds, {name: _rounded(value) for name, value in told.items()})


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _prompt(job: JobRecord, images: list[ImageRecord], links: Links) -> PromptFacts:
    return {
        "id": job.id,
        "prompt": job.prompt,
        "negativePrompt": job.negative_prompt,
        "model": job.model,
        "status": job.status,
        "cost": job.cost,
        "seconds": _rounded((job.outcome or {}).get("seconds")),
        "imageUrls": [links.address(image.media_name, image.public) for image in images],
        "thumbnailUrls": [links.address(image.thumbnail_name, image.public) for image in images],
        "createdAt": iso(job.created_at),
    }
