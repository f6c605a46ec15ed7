"""Server processes: each system in one of its own, on loopback, with an end that is sure to come."""

import multiprocessing
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
from litestar import Litestar

from pipelines.loading import quiet_libraries

from .baselines import BASELINES, create_baseline
from .models import Model
from .observing import Observations, ObservedEngine, Observer

DARKROOM = "darkroom"
SYSTEMS = (DARKROOM, *BASELINES)
START_SECONDS = 300
"""A checkpoint of many gigabytes may have to be read."""

STOP_SECONDS = 15


class ServerFailed(Exception):
    """A server process did not start or does not answer."""


@dataclass(frozen=True)
class Running:
    """A system that serves."""

    system: str
    url: str
    process: BaseProcess
    connection: Connection

    def observations(self) -> Observations:
        """What the process saw since this was last asked. Ask while it is idle."""
        self.connection.send("report")
        if not self.connection.poll(STOP_SECONDS):
            raise ServerFailed(f"the {self.system} server does not answer")
        observations: Observations = self.connection.recv()
        return observations


@contextmanager
def running(systems: Sequence[str], model: Model, lifetime: float) -> Iterator[dict[str, Running]]:
    """Start systems side by side and stop them in the end.

    Args:
        lifetime: seconds after which each process ends by itself, whatever became of this one.

    Raises:
        ServerFailed: one did not start.
    """
    with ExitStack() as stack:
        started = [stack.enter_context(_process(system, model, lifetime)) for system in systems]
        try:
            yield {system: _ready(system, *parts) for system, parts in zip(systems, started, strict=True)}
        finally:
            for _, connection in started:  # all end at once, before any is waited for
                connection.close()


@contextmanager
def _process(system: str, model: Model, lifetime: float) -> Iterator[tuple[BaseProcess, Connection]]:
    # Spawned and not forked: CUDA does not survive a fork, and each system begins as a person would start it.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with TemporaryDirectory(prefix="darkroom-benchmark-") as data:
        process = context.Process(
            target=serve, args=(system, model, Path(data), theirs, lifetime), name=system, daemon=True
        )
        process.start()
        theirs.close()
        try:
            yield process, ours
        finally:
            ours.close()
            process.join(STOP_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


def _ready(system: str, process: BaseProcess, connection: Connection) -> Running:
    try:
        if connection.poll(START_SECONDS):
            return Running(system, f"http://127.0.0.1:{connection.recv()}", process, connection)
    except EOFError:
        process.join()
    raise ServerFailed(f"the {system} server did not start (exit code {process.exitcode}); its own words are above.")


def serve(system: str, model: Model, data: Path, connection: Connection, lifetime: float) -> None:
    """A server process's whole life: it ends when its parent hangs up, or after `lifetime` seconds."""
    quiet_libraries()
    observer = Observer(model.device.torch_device)
    app = _app(system, model, data, observer)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        threading.Thread(target=_obey, args=(connection, server, observer, lifetime), daemon=True).start()
        listener.listen()  # whoever comes before the model is loaded waits in line
        connection.send(listener.getsockname()[1])
        server.run(sockets=[listener])


def _app(system: str, model: Model, data: Path, observer: Observer) -> Litestar:
    if system != DARKROOM:
        return create_baseline(system, model, observer)
    from server.app import create_app
    from server.settings import Settings

    settings = Settings(data=data, models=model.models, queue_limit=100_000)
    return create_app(settings, model.catalog, lambda: ObservedEngine(model.device, observer))


def _obey(connection: Connection, server: Any, observer: Observer, lifetime: float) -> None:
    """Report when asked; stop the server at the end of the pipe or of its time."""
    timer = threading.Timer(lifetime, lambda: setattr(server, "should_exit", True))
    timer.daemon = True
    timer.start()
    try:
        while connection.recv():
            connection.send(observer.drain())
    except (EOFError, OSError):
        server.should_exit = True
