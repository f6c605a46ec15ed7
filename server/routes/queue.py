"""The queue: what waits and runs, and the operators' verbs about it."""

import asyncio
from typing import Annotated, Any, Literal, TypedDict

from litestar import Controller, Request, Response, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from pipelines.errors import InvalidRequest
from server.body import SMALL_JSON_BYTES, read_json
from server.errors import Forbidden, NoPreview
from server.facts import Queue
from server.identity.caller import Caller
from server.identity.guard import OPERATOR
from server.jobs.facts import QueuedJob
from server.routes.jobs import RETRY
from server.schemas import Raw, Success, documents, says, success
from server.state import Services
from storage.encoding import encode
from storage.media import ImageFormat
from storage.records import JobQuery, JobStatus
from storage.transitions import OPEN

MOST_LISTED = 1000
PREVIEW = Raw("The picture as far as its last step tells, at most 256 pixels a side.", ("image/webp",))


class WantedStatus(TypedDict):
    """What is to become of a job."""

    status: Annotated[Literal["cancelled", "pending"], says("Cancel it, or queue it anew.")]


class Paused(TypedDict):
    """Whether the queue is paused."""

    paused: bool


class Cleared(TypedDict):
    """What was cancelled."""

    cancelled: Annotated[int, says("How many jobs.", minimum=0)]


class OpenJobs(TypedDict):
    """Everybody's jobs that have not ended, newest first."""

    jobs: Annotated[list[QueuedJob], says(f"The newest {MOST_LISTED}.")]
    total: Annotated[int, says("How many there are.", minimum=0)]


class QueueVerbs(Controller):
    """The application's paths about the queue as a whole."""

    path = "/api/v1"
    tags = ["jobs"]

    @get("/queue", sync_to_thread=False)
    def queue(
        self, services: NamedDependency[Services], limit: Annotated[int, QueryParameter(ge=0, le=1000)] = 100
    ) -> Success[Queue]:
        """The images that wait or run, when they will be done, and how the last minute was."""
        return success(services.overview.queue(limit))

    @get("/images/queue", sync_to_thread=False)
    def images(
        self, services: NamedDependency[Services], limit: Annotated[int, QueryParameter(ge=0, le=1000)] = 100
    ) -> Success[Queue]:
        """The same as `/api/v1/queue`."""
        return success(services.overview.queue(limit))

    @get("/queue/{number:int}/preview", media_type="image/webp", opt=documents(answers={200: PREVIEW}))
    async def preview(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], number: FromPath[int]
    ) -> Response[bytes]:
        """What one of the caller's own pictures looks like by now: small, and drawn when it is asked for."""
        ticket = services.scheduler.line.find(number)
        image = None
        if ticket is not None and ticket.owner == caller.owner_id:
            image = await services.scheduler.previews.of(ticket)
        if image is None:
            raise NoPreview(number)
        content = await asyncio.to_thread(encode, image, ImageFormat.WEBP, {})
        return Response(content, headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})

    @get("/queue/jobs", opt=OPERATOR)
    async def everybodys(self, services: NamedDependency[Services]) -> Success[OpenJobs]:
        """Everybody's jobs that have not ended, newest first: no more of each than running the queue takes."""
        page = await services.jobs.lists.page(JobQuery(owner_id=None, statuses=tuple(OPEN), limit=MOST_LISTED))
        return success(OpenJobs(jobs=services.progress.in_queue(page.jobs), total=page.total))

    @put(
        "/images/queue/{job_id:str}/status",
        opt=documents(body=WantedStatus, example={"status": "cancelled"}, raises=RETRY),
    )
    async def set_status(
        self,
        request: Request[Any, Any, Any],
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        job_id: FromPath[str],
    ) -> Success[QueuedJob]:
        """Cancel a job, or queue it anew: one of the caller's, or for operators anybody's."""
        wanted = (await read_json(request, SMALL_JSON_BYTES)).get("status")
        if wanted == JobStatus.CANCELLED:
            job = await services.jobs.cancel(caller.reach, job_id)
        elif wanted == JobStatus.PENDING:
            limited = not caller.is_operator
            job = await services.jobs.retry(caller.reach, job_id, services.catalog, limited=limited)
        else:
            raise InvalidRequest("status", "status must be cancelled or pending; the others come by themselves.")
        return success(services.progress.in_queue([job])[0])

    @post("/queue/pause", status_code=200, opt=OPERATOR)
    async def pause(self, services: NamedDependency[Services]) -> Success[Paused]:
        """Begin no more pictures; those begun go on. It lasts until `resume`, also over a restart."""
        await services.jobs.pause(True)
        return success(Paused(paused=True))

    @post("/queue/resume", status_code=200, opt=OPERATOR)
    async def resume(self, services: NamedDependency[Services]) -> Success[Paused]:
        """Begin pictures again."""
        await services.jobs.pause(False)
        return success(Paused(paused=False))

    @post("/queue/clear", status_code=200, opt=documents(raises=(Forbidden,)))
    async def clear(
        self,
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        everyone: FromQuery[bool] = False,
    ) -> Success[Cleared]:
        """Cancel every job of the caller's that waits, or, for operators, everybody's; those at work go on."""
        if everyone and not caller.is_operator:
            raise Forbidden("Only operators may clear everybody's jobs.")
        return success(Cleared(cancelled=await services.jobs.clear(None if everyone else caller.owner_id)))
