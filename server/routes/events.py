"""Live: what happens to jobs, as server-sent events and over a WebSocket."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from litestar import Controller, WebSocket, get, websocket
from litestar.di import NamedDependency
from litestar.exceptions import WebSocketDisconnect
from litestar.params import FromPath, FromQuery, HeaderParameter
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage

from server.identity.caller import Caller
from server.identity.gate import PROTOCOL
from server.jobs.feed import Told
from server.schemas import Raw, documents
from server.state import Services

STREAM = Raw("Server-sent events; while nothing happens, a comment every 15 seconds.", ("text/event-stream",))


class Events(Controller):
    """The present state first, then every change; a slow reader gets the newest and skips those between."""

    tags = ["events"]

    @get("/api/v1/jobs/{job_id:str}/events", media_type="text/event-stream", opt=documents(answers={200: STREAM}))
    async def of_job(
        self,
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        job_id: FromPath[str],
        previews: FromQuery[bool] = False,
    ) -> ServerSentEvent:
        """One job, until it ends."""
        await services.jobs.store.get(caller.owner_id, job_id)
        told = services.feed.follow(caller.owner_id, job_id, previews=previews)
        return ServerSentEvent(_messages(services.gate.while_admitted(caller, told)))

    @get("/api/v1/events", media_type="text/event-stream", opt=documents(answers={200: STREAM}))
    async def all(
        self,
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        last_event_id: Annotated[str | None, HeaderParameter(name="Last-Event-ID")] = None,
        previews: FromQuery[bool] = False,
    ) -> ServerSentEvent:
        """The caller's jobs: those that are open, those that ended since the last event received, then all changes."""
        told = services.feed.follow(caller.owner_id, since=last_event_id, previews=previews)
        return ServerSentEvent(_messages(services.gate.while_admitted(caller, told)))

    @websocket("/ws")
    async def socket(
        self,
        socket: WebSocket[Any, Any, Any],
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        job: FromQuery[str | None] = None,
        since: FromQuery[str | None] = None,
        previews: FromQuery[bool] = False,
    ) -> None:
        """The same as messages `{"type", "id", "data"}`."""
        asked = socket.headers.get("sec-websocket-protocol", "")
        await socket.accept(PROTOCOL if asked.startswith(PROTOCOL) else None)
        gone = asyncio.create_task(_hang_up(socket))
        try:
            events = services.feed.follow(caller.owner_id, job, since=since, previews=previews)
            async for told in services.gate.while_admitted(caller, events):
                if gone.done():
                    return
                message = {"type": "idle"} if told is None else {"type": told.type, "id": told.id, "data": told.data}
                await socket.send_data(msgspec.json.encode(message).decode())
            await socket.close()
        except WebSocketDisconnect:
            return
        finally:
            gone.cancel()


async def _messages(told: AsyncIterator[Told | None]) -> AsyncIterator[ServerSentEventMessage]:
    async for one in told:
        if one is None:
            yield ServerSentEventMessage(comment="nothing new", data=None)
        else:
            yield ServerSentEventMessage(event=one.type, id=one.id, data=msgspec.json.encode(one.data))


async def _hang_up(socket: WebSocket[Any, Any, Any]) -> None:
    """Whatever the client says is of no interest, but that it is gone."""
    try:
        while True:
            await socket.receive_data("text")
    except WebSocketDisconnect:
        return
