"""A server over the stand-in engine in a process of its own, which watches its own event loop, memory and files."""

import asyncio
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import uvicorn

from pipelines.catalog import Catalog
from pipelines.loading import quiet_libraries
from server.app import create_app
from server.connections import http_config
from server.serving import spare_libraries
from server.settings import Settings

from .processes import START_SECONDS, STOP_SECONDS, ServerFailed
from .stand_in import StandIn

LOOK_SECONDS = 0.01
"""How often the event loop is asked to come back; how much later it does is its lag."""


@dataclass(frozen=True)
class Sight:
    """What a server saw of itself: its lags in seconds since it was last asked, and how it stands now."""

    lags: list[float]
    resident_bytes: int
    files: int
    tasks: int


@dataclass(frozen=True)
class Watched:
    """A server that runs."""

    url: str
    connection: Connection

    def look(self) -> Sight:
        """Raises ServerFailed."""
        self.connection.send("look")
        if not self.connection.poll(STOP_SECONDS):
            raise ServerFailed("the server does not answer")
        sight: Sight = self.connection.recv()
        return sight


@contextmanager
def watched(catalog: Catalog, data: Path, engine: StandIn) -> Iterator[Watched]:
    """Start one on a data folder and stop it in the end. Raises ServerFailed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(catalog, data, engine, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_SECONDS):
            raise ServerFailed("the server did not start")
        yield Watched(f"http://127.0.0.1:{ours.recv()}", ours)
    except EOFError:
        raise ServerFailed("the server ended; its own words are above") from None
    finally:
        ours.close()
        process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def serve(catalog: Catalog, data: Path, engine: StandIn, connection: Connection) -> None:
    """The process's whole life: it ends when its parent hangs up."""
    quiet_libraries()
    settings = Settings(data=data, queue_limit=100_000, queue_seconds=86_400, min_free="0")
    app = create_app(settings, catalog, lambda: engine)
    spare_libraries()
    server = uvicorn.Server(http_config(app, settings.max_connections, port=0, lifespan="on", log_level="warning"))
    asyncio.run(_serve(server, connection))


async def _serve(server: uvicorn.Server, connection: Connection) -> None:
    lags: list[float] = []
    watching = asyncio.create_task(_watch(lags))
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(LOOK_SECONDS)
    if server.started:
        connection.send(server.servers[0].sockets[0].getsockname()[1])
        loop = asyncio.get_running_loop()
        threading.Thread(target=_obey, args=(connection, server, loop, lags), daemon=True).start()
    await serving
    watching.cancel()


async def _watch(lags: list[float]) -> None:
    while True:
        due = monotonic() + LOOK_SECONDS
        await asyncio.sleep(LOOK_SECONDS)
        lags.append(max(0.0, monotonic() - due))


def _obey(connection: Connection, server: uvicorn.Server, loop: asyncio.AbstractEventLoop, lags: list[float]) -> None:
    """Tell what is seen when asked; stop the server at the end of the pipe."""
    try:
        while connection.recv():
            connection.send(asyncio.run_coroutine_threadsafe(_sight(lags), loop).result())
    except (EOFError, OSError):
        server.should_exit = True


async def _sight(lags: list[float]) -> Sight:
    process, seen = psutil.Process(), lags.copy()
    lags.clear()
    return Sight(seen, process.memory_info().rss, process.num_fds(), len(asyncio.all_tasks()))


def growth(before: Sight, after: Sight) -> dict[str, Any]:
    """What is more afterwards."""
    return {
        "resident_mb": (after.resident_bytes - before.resident_bytes) / 1e6,
        "files": after.files - before.files,
        "tasks": after.tasks - before.tasks,
    }
