"""A second server around a fake engine: for what only planted failures and closed gates can show."""

import asyncio
import json
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar

from pipelines.catalog import Catalog, ModelEntry
from pipelines.request import ImageRequest
from server.app import create_app
from server.connections import ORDINARY, Patience, http_config
from server.serving import HttpServer
from server.settings import Settings
from server.stopping import drain
from storage.schema import DATABASE_NAME
from tests.fakes import FakeEngine, entry

GENERATIONS = "/v1/images/generations"

PATIENCE = 30
"""Seconds to wait for what takes milliseconds when the machine is idle: on shared cores a thread may wait for long."""


@dataclass
class Gate:
    """A place where the server waits until the test lets it go on; open unless closed."""

    reached: threading.Event = field(default_factory=threading.Event)
    _open: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._open.set()

    def close(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def enter(self) -> None:
        """Blocks the calling thread."""
        self.reached.set()
        assert self._open.wait(2 * PATIENCE), "nobody opened the gate"


@dataclass
class GatedEngine(FakeEngine):
    """A fake engine with a gate in every verb, and seeds whose pictures fail at the last moment."""

    gates: dict[str, Gate] = field(default_factory=lambda: {verb: Gate() for verb in ("encode", "step", "finish")})
    failing_seeds: dict[int, Exception] = field(default_factory=dict)

    def encode(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Any]:
        self.gates["encode"].enter()
        return super().encode(entry, requests)

    def step(self, entry: ModelEntry, batch: Sequence[Any]) -> list[Exception | None]:
        self.gates["step"].enter()
        return super().step(entry, batch)

    def finish(self, entry: ModelEntry, batch: Sequence[Any]) -> list[Any]:
        self.gates["finish"].enter()
        pictures = super().finish(entry, batch)
        return [
            self.failing_seeds.get(image.request.seed, picture) for image, picture in zip(batch, pictures, strict=True)
        ]

    def open(self) -> None:
        for gate in self.gates.values():
            gate.open()


@dataclass(frozen=True)
class FakeServer:
    """Where it listens, what it computes with, and where it keeps things."""

    port: int
    engine: GatedEngine
    data: Path
    app: Litestar
    signal: Callable[[], object] = lambda: None
    """Asks it to stop, as SIGTERM does."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, **fields: Any) -> httpx.Response:
        return httpx.post(self.url + GENERATIONS, json={"prompt": "a hat"} | fields, timeout=30)

    def post_keyed(self, headers: dict[str, str], **fields: Any) -> httpx.Response:
        return httpx.post(self.url + GENERATIONS, json={"prompt": "a hat"} | fields, headers=headers, timeout=30)

    @property
    def queue(self) -> int:
        """How many images wait or run."""
        depth: int = httpx.get(self.url + "/ready").json()["queue"]
        return depth

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(f"file:{self.data / DATABASE_NAME}?mode=ro", uri=True) as connection:
            found = connection.execute(statement).fetchall()
        connection.close()
        return found

    @property
    def statuses(self) -> list[str]:
        return [status for (status,) in self.rows("SELECT status FROM jobs ORDER BY created_at")]

    def check_consistent(self) -> None:
        """No file without a row, no row without its two files, nothing half-written."""
        alive = {row[0] for row in self.rows("SELECT id FROM images WHERE deleted_at IS NULL")}
        for kind in ("generated_images", "thumbnails"):
            assert {path.stem for path in (self.data / "media" / kind).rglob("*.*")} == alive, kind
        assert not list((self.data / "media").rglob("*.part"))


@contextmanager
def serving(
    data: Path,
    engine: GatedEngine | None = None,
    grace: int = 0,
    catalog: Catalog | None = None,
    patience: Patience = ORDINARY,
    **settings: Any,
) -> Iterator[FakeServer]:
    """Models, if none are given: `fake`, `other` and `broken`, none of which is a real one. `grace` is in seconds."""
    engine = engine or GatedEngine()
    catalog = catalog or Catalog(
        {name: entry(name) for name in ("fake", "other", "broken")}, "fake", Path("models.toml")
    )
    app_settings = Settings(data=data, **settings)
    app = create_app(app_settings, catalog, lambda: engine)
    config = http_config(app, app_settings.max_connections, patience, port=0, lifespan="on")
    instance = HttpServer(
        config,
        drain=lambda: drain(app.state.services, grace),
        end_jobs=lambda: app.state.services.jobs.stop(),
    )
    instance.capture_signals = nullcontext  # type: ignore[method-assign]  # they reach the main thread alone
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await instance.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    eventually(lambda: instance.started or not thread.is_alive())
    assert thread.is_alive(), "the server did not start"
    port = instance.servers[0].sockets[0].getsockname()[1]
    stop = partial(loops[0].call_soon_threadsafe, instance.handle_exit, signal.SIGTERM, None)
    try:
        yield FakeServer(port, engine, data, app, stop)
    finally:
        if thread.is_alive():
            stop()
        engine.open()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not stop"


def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


@contextmanager
def calling(fake: FakeServer, **fields: Any) -> Iterator[socket.socket]:
    """A client that has sent its request and waits; leaving the block is hanging up."""
    body = json.dumps({"prompt": "a hat"} | fields).encode()
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", fake.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield connection


def gate_before(monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> Gate:
    """Close a gate in front of a method of the storage, whether it is awaited or runs in a thread."""
    gate, original = Gate(), getattr(owner, method)
    gate.close()

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        await asyncio.to_thread(gate.enter)
        return await original(*args, **kwargs)

    def called(*args: Any, **kwargs: Any) -> Any:
        gate.enter()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, awaited if asyncio.iscoroutinefunction(original) else called)
    return gate
