"""Jobs: handed in to be fetched later, looked at, cancelled, tried again, moved; and the queue they wait in."""

from dataclasses import replace
from typing import Annotated, Any

from litestar import Controller, Request, Response, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from pipelines.errors import InvalidRequest
from pipelines.request import check_range
from server.body import SMALL_JSON_BYTES, read_json
from server.generation import MAX_PRIORITY
from server.identity.caller import Caller
from server.identity.guard import OPERATOR
from server.intake import read_order
from server.jobs.orders import Order
from server.openapi import documents_body
from server.state import Services
from storage.records import ClientKey, JobQuery, JobRecord, JobStatus

FRONT = "front"
STATUSES = ", ".join(JobStatus)


class Jobs(Controller):
    """The application's paths about jobs."""

    path = "/api/v1"
    tags = ["jobs"]

    @post("/images/generate", status_code=202, operation_class=documents_body("GenerationBody"))
    async def generate(
        self, request: Request[Any, Any, Any], services: NamedDependency[Services], caller: NamedDependency[Caller]
    ) -> Response[dict[str, Any]]:
        """Queue a job and return at once."""
        asked = await read_order(request, services, caller)
        return await queued(services, asked.order, asked.key)

    @get("/jobs")
    async def jobs(
        self,
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        status: FromQuery[list[str] | None] = None,
        session_id: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: FromQuery[str | None] = None,
    ) -> dict[str, Any]:
        """The caller's jobs, newest first."""
        statuses = [_status(word) for word in status or ()]
        query = JobQuery(owner_id=caller.owner_id, session_id=session_id, statuses=statuses, limit=limit, cursor=cursor)
        page = await services.jobs.lists.page(query)
        pagination = {"total_items": page.total, "next_cursor": page.cursor}
        return _success({"jobs": await services.progress.of(page.jobs), "pagination": pagination})

    @get(["/jobs/{job_id:str}", "/jobs/{job_id:str}/status"])
    async def job(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], job_id: FromPath[str]
    ) -> dict[str, Any]:
        """One job: how far it is, when it will be done, what came of it."""
        return _success(await services.progress.one(await services.jobs.store.get(caller.owner_id, job_id)))

    @delete("/jobs/{job_id:str}", status_code=200)
    async def delete_job(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], job_id: FromPath[str]
    ) -> dict[str, Any]:
        """Cancel a job that has not ended."""
        return _success(await services.progress.one(await services.jobs.cancel(caller.owner_id, job_id)))

    @post("/jobs/{job_id:str}/cancel", status_code=200)
    async def cancel(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], job_id: FromPath[str]
    ) -> dict[str, Any]:
        """Cancel a job that has not ended."""
        return _success(await services.progress.one(await services.jobs.cancel(caller.owner_id, job_id)))

    @post("/jobs/{job_id:str}/retry", status_code=202)
    async def retry(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], job_id: FromPath[str]
    ) -> Response[dict[str, Any]]:
        """Queue a job anew that failed or was cancelled."""
        return await accepted(services, await services.jobs.retry(caller.owner_id, job_id, services.catalog))

    @patch("/jobs/{job_id:str}")
    async def change(
        self,
        request: Request[Any, Any, Any],
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        job_id: FromPath[str],
    ) -> dict[str, Any]:
        """Give a job another priority, or move it to the front of its priority."""
        priority, to_front = _place(await read_json(request, SMALL_JSON_BYTES))
        job = await services.jobs.change(caller.owner_id, job_id, priority=priority, to_front=to_front)
        return _success(await services.progress.one(job))

    @get("/images/queue", sync_to_thread=False)
    def queue(
        self, services: NamedDependency[Services], limit: Annotated[int, QueryParameter(ge=0, le=1000)] = 100
    ) -> dict[str, Any]:
        """The same as `/api/v1/queue`."""
        return _success(services.overview.queue(limit))

    @put("/images/queue/{job_id:str}/status")
    async def set_status(
        self,
        request: Request[Any, Any, Any],
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        job_id: FromPath[str],
    ) -> dict[str, Any]:
        """Cancel a job, or queue it anew."""
        wanted = (await read_json(request, SMALL_JSON_BYTES)).get("status")
        if wanted == JobStatus.CANCELLED:
            job = await services.jobs.cancel(caller.owner_id, job_id)
        elif wanted == JobStatus.PENDING:
            job = await services.jobs.retry(caller.owner_id, job_id, services.catalog)
        else:
            raise InvalidRequest("status", "status must be cancelled or pending; the others come by themselves.")
        return _success(await services.progress.one(job))

    @post("/queue/pause", status_code=200, opt=OPERATOR)
    async def pause(self, services: NamedDependency[Services]) -> dict[str, Any]:
        """Begin no more pictures; those begun go on. It lasts until `resume`, also over a restart."""
        await services.jobs.pause(True)
        return _success({"paused": True})

    @post("/queue/resume", status_code=200, opt=OPERATOR)
    async def resume(self, services: NamedDependency[Services]) -> dict[str, Any]:
        """Begin pictures again."""
        await services.jobs.pause(False)
        return _success({"paused": False})

    @post("/queue/clear", status_code=200)
    async def clear(self, services: NamedDependency[Services], caller: NamedDependency[Caller]) -> dict[str, Any]:
        """Cancel every job of the caller's that waits; those that are being processed go on."""
        return _success({"cancelled": await services.jobs.clear(caller.owner_id)})


async def queued(services: Services, order: Order, key: ClientKey | None) -> Response[dict[str, Any]]:
    """Queue a job whose client comes back for it."""
    return await accepted(services, await services.jobs.submit(replace(order, attached=False), key))


async def accepted(services: Services, job: JobRecord) -> Response[dict[str, Any]]:
    """The answer to a job that was queued: where to look for it."""
    facts = await services.progress.one(job)
    place = f"/api/v1/jobs/{job.id}"
    data = {
        "prompt_id": job.id,
        "job_id": job.id,
        "status": facts["status"],
        "queue_position": facts["queuePosition"],
        "estimated_completion": facts["estimatedCompletion"],
        "status_url": place,
        "events_url": f"{place}/events",
    }
    return Response(_success(data), status_code=202, headers={"Location": place})


def _success(data: dict[str, Any]) -> dict[str, Any]:
    return {"success": True, "data": data}


def _status(word: str) -> JobStatus:
    if word not in list(JobStatus):
        raise InvalidRequest("status", f"status must be one of {STATUSES}, not {word[:24]!r}.")
    return JobStatus(word)


def _place(data: dict[str, Any]) -> tuple[int | None, bool]:
    """What a PATCH asks for: a priority, and whether the job is to go to the front."""
    priority, position = data.get("priority"), data.get("position")
    for name in data:
        if name not in ("priority", "position"):
            raise InvalidRequest(name[:80], f"Unknown field {name[:80]!r}. Known: priority, position.")
    if priority is None and position is None:
        raise InvalidRequest("priority", "Give a priority, a position, or both.")
    if priority is not None:
        if not isinstance(priority, int) or isinstance(priority, bool):
            raise InvalidRequest("priority", "priority must be a whole number.")
        check_range("priority", priority, -MAX_PRIORITY, MAX_PRIORITY)
    if position not in (None, FRONT):
        raise InvalidRequest("position", f'position must be "{FRONT}".')
    return priority, position == FRONT
