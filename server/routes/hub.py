"""The message hub's door: an event comes in, and a job may come of it."""

from typing import Annotated, Any, Literal, TypedDict

from litestar import Controller, Request, Response, post
from litestar.di import NamedDependency

from server.generation import order_of, read_body
from server.hub.cloud_events import CloudEvent, read_event
from server.hub.mappings import MAPPED, REQUESTED, fields_of
from server.identity.caller import Caller
from server.intake import REFUSED, Intake
from server.routes.jobs import QUEUED, Queued, queued
from server.schemas import Moment, Success, documents, says, success
from server.state import Services
from storage.records import JobStatus

EXAMPLE = {
    "specversion": "1.0",
    "id": "1",
    "source": "/game",
    "type": REQUESTED,
    "data": {"prompt": "a lighthouse on a cliff at dusk"},
}


class GenerationRequested(TypedDict):
    """A CloudEvent in structured mode; in binary mode, the attributes are `ce-` headers and the body is `data`."""

    specversion: Literal["1.0"]
    id: Annotated[str, says("With `source`, the event's name: the same again is the same job.", minLength=1)]
    source: Annotated[str, says("Who sends it.", minLength=1)]
    type: Annotated[str, says(f"`{REQUESTED}`, or one that a table of models.toml maps.", minLength=1)]
    data: Annotated[
        dict[str, Any],
        says("The body of a generation, or what the table's templates are filled with.", additionalProperties=True),
    ]


class Ignored(TypedDict):
    """An event that asks for nothing here."""

    ignored: Annotated[str, says("Why nothing came of it.")]


class Received(TypedDict, total=False):
    """What came of an event: a job, or nothing and the reason."""

    ignored: Annotated[str, says("Why nothing came of it.")]
    prompt_id: Annotated[str, says("The same as `job_id`.")]
    job_id: str
    status: JobStatus
    queue_position: int | None
    estimated_completion: Moment | None
    status_url: str
    events_url: str


class Hub(Controller):
    """The application's path for events of other programs."""

    path = "/api/v1/hub"
    tags = ["hub"]

    @post(
        "/events",
        status_code=202,
        opt=documents(
            body=GenerationRequested, example=EXAMPLE, answers={202: Success[Received]}, raises=REFUSED, sends=QUEUED
        ),
    )
    async def receive(
        self, request: Request[Any, Any, Any], services: NamedDependency[Services], caller: NamedDependency[Caller]
    ) -> Response[Success[Queued]] | Response[Success[Ignored]]:
        """Take a CloudEvent; if it asks for pictures, queue a job. The same event again is the same job."""
        event = await read_event(request)
        await services.gate.recheck(caller)
        fields = _fields(event, services)
        if fields is None:
            reason = f"This server makes nothing of {event.type[:80]}; a table in its models.toml may change that."
            return Response(success(Ignored(ignored=reason)), status_code=202)
        body = read_body(fields)
        order = order_of(body, services.catalog, caller, request.headers.get("traceparent"))
        return await queued(services, caller, Intake(body, order, event.key))


def _fields(event: CloudEvent, services: Services) -> dict[str, Any] | None:
    """What the event asks for; None for nothing."""
    if event.type == REQUESTED:
        return event.data
    table = services.catalog.hub.get(event.type) if event.type in MAPPED else None
    return None if table is None else fields_of(table, event.data)
