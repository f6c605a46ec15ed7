"""Clients that are slow, too many, or send what is no request: each connection has its bounds."""

import json
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from server.connections import MAX_HEAD_BYTES, Patience
from server.errors import Unauthenticated
from tests.fake_server import GENERATIONS, PATIENCE, FakeServer, eventually, serving

SHORT = Patience(head=0.3, reader=0.3)

HEAD = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
UNFINISHED = f"{HEAD}Content-Length: 9\r\n\r\n{{".encode()
LOOK = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[FakeServer]:
    with serving(tmp_path, patience=SHORT) as running:
        yield running


def opened(fake: FakeServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", fake.port), timeout=PATIENCE)


def heard(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """The next answer: its status and what it says."""
    answer = HTTPResponse(connection)
    answer.begin()
    assert answer.headers["x-request-id"]
    return answer.status, json.loads(answer.read())


def until_closed(connection: socket.socket) -> bytes:
    """What else comes before the server closes the connection."""
    rest = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            rest += part
    return rest


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_head_that_never_ends_is_given_up(impatient: FakeServer, asked_before: bool) -> None:
    with opened(impatient) as connection:
        if asked_before:
            connection.sendall(LOOK)
            assert heard(connection)[0] == 200
        connection.sendall(b"GET /health HTTP/1.1\r\nHost:")
        status, body = heard(connection)
        assert (status, body["error"]["code"], body["success"]) == (408, "request_timeout", False)
        assert until_closed(connection) == b""


def test_a_head_that_comes_byte_by_byte_is_given_up_as_well(impatient: FakeServer) -> None:
    with opened(impatient) as connection, ThreadPoolExecutor() as pool:
        answer = pool.submit(until_closed, connection)
        with suppress(OSError):
            while not answer.done():
                connection.sendall(b"x")
                time.sleep(0.01)
        assert answer.result().startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("before", [b"", LOOK])
def test_a_connection_that_stands_idle_is_closed(impatient: FakeServer, before: bytes) -> None:
    with opened(impatient) as connection:
        connection.sendall(before)
        if before:
            assert heard(connection)[0] == 200
        assert until_closed(connection) == b""


def test_a_body_that_nobody_reads_holds_no_connection(impatient: FakeServer) -> None:
    """The answer is there at once; whoever goes on sending the body is cut off, drop by drop or not."""
    with opened(impatient) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n")
        assert heard(connection)[0] == 200
        with pytest.raises(OSError):
            while True:
                connection.sendall(bytes(1000))
    assert httpx.get(impatient.url + "/health").status_code == 200


def test_an_answer_that_takes_long_is_waited_for(impatient: FakeServer) -> None:
    """The bounds are the client's: the server's own work may take longer than any of them."""
    impatient.engine.gates["step"].close()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(impatient.post)
        assert impatient.engine.gates["step"].reached.wait(PATIENCE)
        with opened(impatient) as other:
            assert until_closed(other) == b""  # by now any bound has passed
        impatient.engine.open()
        assert answer.result().status_code == 200


def test_a_websocket_outlasts_the_wait_for_a_head(impatient: FakeServer) -> None:
    with connect(f"ws://127.0.0.1:{impatient.port}/ws") as watching, opened(impatient) as other:
        assert until_closed(other) == b""
        assert impatient.post().status_code == 200
        assert json.loads(watching.recv(PATIENCE))["type"]
        watching.send("x" * 100_000)  # nobody wants to hear that much
        with suppress(Exception):
            while True:
                watching.recv(PATIENCE)
        assert watching.close_code == 1009


def test_a_client_that_takes_nothing_is_cut_off(impatient: FakeServer) -> None:
    """Requests without end and no answer read: what waits for the client is bounded, and so is the wait."""
    with opened(impatient) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(OSError):
            while True:
                connection.sendall(b"GET /docs/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nX: " + b"x" * 3_000_000,
        b"GET /" + b"x" * 3_000_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01",  # a client that speaks TLS
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
    ids=["3 MB of header", "3 MB of path", "TLS", "two hosts", "no host", "two lengths"],
)
def test_what_is_no_request_is_refused(impatient: FakeServer, head: bytes) -> None:
    with opened(impatient) as connection:
        connection.sendall(head[: 2 * MAX_HEAD_BYTES])
        with suppress(OSError):
            connection.sendall(head[2 * MAX_HEAD_BYTES :])
        status, body = heard(connection)
        assert (status, body["error"]["code"]) == (400, "invalid_request")
        until_closed(connection)
    assert httpx.get(impatient.url + "/health").status_code == 200


def test_nonsense_behind_an_answer_closes_the_connection_without_an_error(
    impatient: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(impatient) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert heard(connection)[0] == 200
        connection.sendall(b"this is no chunk\r\n")
        assert until_closed(connection) == b""
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_one_connection_too_many_is_told_so_and_the_next_is_welcome(tmp_path: Path) -> None:
    with serving(tmp_path, max_connections=3) as fake:
        with ExitStack() as crowd:
            for _ in range(3):
                connection = crowd.enter_context(opened(fake))
                connection.sendall(LOOK)
                assert heard(connection)[0] == 200
            with opened(fake) as surplus:
                status, body = heard(surplus)
                assert (status, body["error"]["code"]) == (503, "too_many_connections")
                assert until_closed(surplus) == b""
            connection.sendall(LOOK)  # those who are there are not touched
            assert heard(connection)[0] == 200

        def welcome() -> bool:
            with suppress(OSError), httpx.Client() as client:
                return client.get(fake.url + "/health").status_code == 200
            return False

        eventually(welcome)


def test_who_asks_is_settled_before_the_body_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any) -> None:
        raise Unauthenticated("Who are you?")

    monkeypatch.setattr("server.app.authorise", refuse)
    with serving(tmp_path) as fake, opened(fake) as connection:
        connection.sendall(f"{HEAD}Content-Length: 1000000\r\n\r\n".encode())
        status, body = heard(connection)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")


def test_a_body_is_bounded_by_its_route(tmp_path: Path) -> None:
    with serving(tmp_path) as fake:
        for method, path, limit in (
            ("POST", GENERATIONS, 1024 * 1024),
            ("POST", "/api/v1/images/generate", 1024 * 1024),
            ("PATCH", "/api/v1/jobs/x", 16 * 1024),
            ("PUT", "/api/v1/images/queue/x/status", 16 * 1024),
        ):
            for size, refused in ((limit, False), (limit + 1, True)):
                body = b'{"prompt": "' + b"x" * (size - 14) + b'"}'
                answer = httpx.request(
                    method, fake.url + path, content=body, headers={"Content-Type": "application/json"}
                )
                assert (answer.status_code == 413) is refused, (path, size, answer.text)


def test_a_stop_does_not_wait_for_a_body_that_never_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as clients:
        with serving(tmp_path, grace=1) as fake:
            body, head = clients.enter_context(opened(fake)), clients.enter_context(opened(fake))
            body.sendall(UNFINISHED)
            head.sendall(UNFINISHED[:20])
            eventually(lambda: httpx.get(fake.url + "/health").status_code == 200)
        # The block ended, so the server did, with both clients still there.
        assert until_closed(head) == until_closed(body) == b""
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
