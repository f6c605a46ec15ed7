"""Connections: how many there may be, and how long each may take to say what it wants and to hear the answer."""

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import h11
import msgspec
import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.answers import Answer, application_shape

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 2
"""How long a stop waits for clients to hear the end; without a bound a slow one would keep the process for ever."""

KEEP_ALIVE_SECONDS = 5
"""How long a connection may stand idle between two requests."""

MAX_HEAD_BYTES = 16 * 1024
"""Of a request's line and headers, as long as they are not complete."""

MAX_MESSAGE_BYTES = 64 * 1024
"""Of a message that a client sends over a WebSocket, where nothing that it says is of interest."""

BAD_HEAD = Answer(
    400,
    "invalid_request",
    says=f"This is no HTTP/1.1 request, or its head is larger than {MAX_HEAD_BYTES // 1024} KiB.",
)
TOO_MANY = Answer(
    503, "too_many_connections", retry=True, says="The server has as many connections as it may have. Try again later."
)


@dataclass(frozen=True)
class Patience:
    """Seconds that a client is waited for; uvicorn itself waits for ever.

    Attributes:
        head: for a request's whole head, from the connection's beginning or the last answer's end. What is left of a
            body that nobody read counts as well.
        reader: for any part of an answer to be taken, once so much of it waits that no more is made.
    """

    head: float = 10.0
    reader: float = 60.0

    @property
    def too_slow(self) -> Answer:
        """What a head that is late is answered."""
        return Answer(
            408, "request_timeout", retry=True, says=f"The request's head did not arrive within {self.head:g} seconds."
        )


ORDINARY = Patience()


def http_config(app: Litestar, most: int, patience: Patience = ORDINARY, **options: Any) -> uvicorn.Config:
    """How an application is served: at most so many connections, each of them bounded."""
    return uvicorn.Config(
        app,
        http=partial(BoundedConnection, most=most, patience=patience),  # type: ignore[arg-type]  # called like a class
        log_config=None,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ws_max_size=MAX_MESSAGE_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=FAREWELL_SECONDS,
        **options,
    )


class BoundedConnection(H11Protocol):
    """uvicorn's connection with the bounds that it lacks. How long a body may take is `read_json`'s to say."""

    def __init__(self, *arguments: Any, most: int, patience: Patience, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._most = most
        self._patience = patience
        self._head_due: asyncio.TimerHandle | None = None
        self._reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            self._refuse(TOO_MANY)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._look()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_due = self.loop.call_later(self._patience.reader, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None

    def shutdown(self) -> None:
        """The server stops: whoever is still sending a request is cut off."""
        super().shutdown()
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(BAD_HEAD)

    def _look(self) -> None:
        """Keep the time as long as a request's head is waited for, from when it first was."""
        if not self._expecting and self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None
        elif self._expecting and self._head_due is None:
            self._head_due = self.loop.call_later(self._patience.head, self._late)

    @property
    def _expecting(self) -> bool:
        if self.transport.is_closing() or self.transport.get_protocol() is not self:  # a WebSocket's by now
            return False
        return self.cycle is None or self.cycle.response_complete

    def _late(self) -> None:
        begun, _ = self.conn.trailing_data
        if begun:
            self._refuse(self._patience.too_slow)
        else:
            self.transport.close()  # there is nothing to be answered

    def _refuse(self, answer: Answer) -> None:
        """Answer before there is a request that the application could answer, and close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # the last request's answer is not through
            self.transport.close()
            return
        number = uuid4().hex
        log.info("request %s: refused before it was read: %d %s", number, answer.status, answer.code)
        body = msgspec.json.encode(application_shape(answer, answer.says or "", None))
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        headers |= {"x-request-id": number} | ({"retry-after": "5"} if answer.status == 503 else {})
        said = h11.Response(status_code=answer.status, headers=list(headers.items()))
        for event in (said, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
