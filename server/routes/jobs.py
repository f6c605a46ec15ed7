"""Jobs: handed in to be fetched later, looked at, cancelled, tried again, moved; and the queue they wait in."""

from dataclasses import replace
from typing import Annotated, Any, Final, Literal, TypedDict

from litestar import Controller, Request, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from pipelines.errors import InvalidRequest, UnknownModel
from pipelines.request import check_range
from server.body import SMALL_JSON_BYTES, read_json
from server.generation_body import EXAMPLE, MAX_PRIORITY, GenerationBody
from server.identity.caller import Caller
from server.intake import REFUSED, Intake, read_order
from server.jobs.facts import JobFacts
from server.limits import ALLOWANCE
from server.scheduling.queue import QueueFull
from server.schemas import Moment, Pagination, Success, documents, says, success
from server.state import Services
from storage.errors import IllegalTransition, JobEnded, LimitReached, NotEnoughCredit, NotFound
from storage.records import JobQuery, JobRecord, JobStatus

RETRY = (IllegalTransition, UnknownModel, QueueFull, LimitReached, NotEnoughCredit)
FRONT: Final = "front"
QUEUED = {202: ("Location", *ALLOWANCE)}
STATUSES = ", ".join(JobStatus)
ONE_OF_STATUSES = {"type": "array", "items": {"enum": list(JobStatus)}}


class Queued(TypedDict):
    """A job that was queued: where to look for it."""

    prompt_id: Annotated[str, says("The same as `job_id`.")]
    job_id: str
    status: JobStatus
    queue_position: Annotated[int | None, says("Its place among the jobs of which nothing is begun, from 1.")]
    estimated_completion: Annotated[Moment | None, says("Null while the queue is paused.")]
    status_url: Annotated[str, says("The job's path on this server, which `Location` names too.")]
    events_url: Annotated[str, says("The path of its live events.")]


class JobsPage(TypedDict):
    """The caller's jobs, newest first."""

    jobs: list[JobFacts]
    pagination: Pagination


class JobPlace(TypedDict, total=False):
    """Another place in line: a priority, the front of the job's priority, or both."""

    priority: Annotated[int | None, says("A higher one goes first.", minimum=-MAX_PRIORITY, maximum=MAX_PRIORITY)]
    position: Annotated[Literal["front"] | None, says("Before the others of its priority.")]


class Jobs(Controller):
    """The application's paths about jobs."""

    path = "/api/v1"
    tags = ["jobs"]

    @post(
        "/images/generate",
        status_code=202,
        opt=documents(body=GenerationBody, example=EXAMPLE, raises=REFUSED, reads=("Idempotency-Key",), sends=QUEUED),
    )
    async def generate(
        self, request: Request[Any, Any, Any], services: NamedDependency[Services], caller: NamedDependency[Caller]
    ) -> Response[Success[Queued]]:
        """Queue a job and return at once."""
        asked = await read_order(request, services, caller)
        return await queued(services, caller, asked)

    @get("/jobs", opt=documents(raises=(NotFound,)))
    async def jobs(
        self,
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        status: Annotated[list[str] | None, QueryParameter(schema_extra=ONE_OF_STATUSES)] = None,
        session_id: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: FromQuery[str | None] = None,
    ) -> Success[JobsPage]:
        """The caller's jobs, newest first."""
        statuses = [_status(word) for word in status or ()]
        query = JobQuery(owner_id=caller.owner_id, session_id=session_id, statuses=statuses, limit=limit, cursor=cursor)
        page = await services.jobs.lists.page(query)
        pagination: Pagination = {"total_items": page.total, "next_cursor": page.cursor}
        return success(JobsPage(jobs=await services.progress.of(page.jobs), pagination=pagination))

    @get(["/jobs/{job_id:str}", "/jobs/{job_id:str}/status"])
    async def job(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], job_id: FromPath[str]
    ) -> Success[JobFacts]:
        """One job: how far it is, when it will be done, what came of it."""
        return success(await services.progress.one(await services.jobs.store.get(caller.owner_id, job_id)))

    @delete("/jobs/{job_id:str}", status_code=200, opt=documents(raises=(IllegalTransition,)))
    async def delete_job(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], job_id: FromPath[str]
    ) -> Success[JobFacts]:
        """Cancel a job that has not ended."""
        return success(await services.progress.one(await services.jobs.cancel(caller.owner_id, job_id)))

    @post("/jobs/{job_id:str}/cancel", status_code=200, opt=documents(raises=(IllegalTransition,)))
    async def cancel(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], job_id: FromPath[str]
    ) -> Success[JobFacts]:
        """Cancel a job that has not ended."""
        return success(await services.progress.one(await services.jobs.cancel(caller.owner_id, job_id)))

    @post("/jobs/{job_id:str}/retry", status_code=202, opt=documents(raises=RETRY, sends=QUEUED))
    async def retry(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], job_id: FromPath[str]
    ) -> Response[Success[Queued]]:
        """Queue a job anew that failed or was cancelled."""
        limited = not caller.is_operator
        job = await services.jobs.retry(caller.owner_id, job_id, services.catalog, limited=limited)
        return await accepted(services, caller, job)

    @patch("/jobs/{job_id:str}", opt=documents(body=JobPlace, example={"position": "front"}, raises=(JobEnded,)))
    async def change(
        self,
        request: Request[Any, Any, Any],
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        job_id: FromPath[str],
    ) -> Success[JobFacts]:
        """Give a job another priority, or move it to the front of its priority."""
        priority, to_front = _place(await read_json(request, SMALL_JSON_BYTES))
        caller.check_priority(priority, to_front=to_front)
        job = await services.jobs.change(caller.owner_id, job_id, priority=priority, to_front=to_front)
        return success(await services.progress.one(job))


async def queued(services: Services, caller: Caller, asked: Intake) -> Response[Success[Queued]]:
    """Queue a job whose client comes back for it."""
    job = await services.jobs.submit(replace(asked.order, attached=False), asked.key)
    return await accepted(services, caller, job)


async def accepted(services: Services, caller: Caller, job: JobRecord) -> Response[Success[Queued]]:
    """The answer to a job that was queued: where to look for it."""
    facts = await services.progress.one(job)
    place = f"/api/v1/jobs/{job.id}"
    data: Queued = {
        "prompt_id": job.id,
        "job_id": job.id,
        "status": facts["status"],
        "queue_position": facts["queuePosition"],
        "estimated_completion": facts["estimatedCompletion"],
        "status_url": place,
        "events_url": f"{place}/events",
    }
    headers = {"Location": place} | await services.allowances.headers(caller)
    return Response(success(data), status_code=202, headers=headers)


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
