"""The message hub's door: an event comes in, and a job may come of it."""

from typing import Any

from litestar import Controller, Request, Response, post
from litestar.di import NamedDependency

from server.generation import order_of, read_body
from server.hub.cloud_events import CloudEvent, read_event
from server.hub.mappings import MAPPED, REQUESTED, fields_of
from server.identity.caller import Caller
from server.routes.jobs import queued
from server.state import Services


class Hub(Controller):
    """The application's path for events of other programs."""

    path = "/api/v1/hub"
    tags = ["hub"]

    @post("/events", status_code=202)
    async def receive(
        self, request: Request[Any, Any, Any], services: NamedDependency[Services], caller: NamedDependency[Caller]
    ) -> Response[dict[str, Any]]:
        """Take a CloudEvent; if it asks for pictures, queue a job. The same event again is the same job."""
        event = await read_event(request)
        fields = _fields(event, services)
        if fields is None:
            reason = f"This server makes nothing of {event.type[:80]}; a table in its models.toml may change that."
            return Response({"success": True, "data": {"ignored": reason}}, status_code=202)
        order = order_of(read_body(fields), services.catalog, caller, request.headers.get("traceparent"))
        return await queued(services, order, event.key)


def _fields(event: CloudEvent, services: Services) -> dict[str, Any] | None:
    """What the event asks for; None for nothing."""
    if event.type == REQUESTED:
        return event.data
    table = services.catalog.hub.get(event.type) if event.type in MAPPED else None
    return None if table is None else fields_of(table, event.data)
