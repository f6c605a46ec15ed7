"""Running the server: the catalogue is read, the device found, and uvicorn serves until it is told to stop."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from types import FrameType
from typing import Any

import click
import uvicorn
from litestar import Litestar

from pipelines.models_toml import load_catalog
from server.connections import http_config
from server.settings import Settings, SettingsError, unknown_variables

log = logging.getLogger(__name__)

EXIT_ENGINE_LOST = 70
"""The exit code that asks a supervisor for a new process (EX_SOFTWARE of sysexits.h)."""

LAST_RESORT_SECONDS = 30
"""How long a server that lost its device may take to end in order; then it ends at once."""


def serve_forever(settings: Settings) -> int:
    """Serve until interrupted; returns the process's exit code.

    When the device was lost it does not return: the process ends with EXIT_ENGINE_LOST, for a thread may hang, and
    what CUDA does at the end of a process may fail.

    Raises:
        SettingsError, CatalogError, StorageError: it cannot start.
    """
    began = monotonic()
    _log_to_stderr(settings.log_level.upper())
    for warning in unknown_variables():
        log.warning(warning)
    listener = _listen(settings)
    click.echo("Darkroom is loading its libraries ...", err=True)

    from pipelines.device import pick_device
    from pipelines.engine import Engine
    from pipelines.families import family_facts
    from server.app import create_app
    from server.hub.mappings import check_mappings
    from server.stopping import drain

    catalog = load_catalog(settings.models, family_facts())
    check_mappings(catalog)
    device = pick_device(settings.device)
    click.echo(f"Device: {device}", err=True)
    settings = replace(settings, port=listener.getsockname()[1])
    budgets = device.budgets(settings.vram_budget, settings.ram_budget)
    app = create_app(settings, catalog, lambda: Engine(device, budgets, settings.data))
    config = http_config(app, settings.max_connections, lifespan="off", access_log=settings.log_level == "debug")
    server = HttpServer(
        config,
        drain=lambda: drain(app.state.services, settings.grace),
        end_jobs=lambda: app.state.services.jobs.stop(),
    )

    spare_libraries()

    def announce() -> None:
        if catalog.path != settings.models:
            click.echo(f"{settings.models} names no model: the demo checkpoints are served", err=True)
        click.echo(
            f"Open {settings.url} (started in {monotonic() - began:.1f} s; the default model is loading)", err=True
        )

    if asyncio.run(_serve(app, server, listener, announce)):
        _leave()
    log.info("stopped")
    return 0


def spare_libraries() -> None:
    """Take what was imported out of the garbage collector's full passes.

    torch and diffusers bring a quarter of a million objects that never go. Looking at them all, now and then, would
    hold every thread for a third of a second or more. Not to be called once a model is loaded: what it holds in cycles
    has to go one day.
    """
    gc.collect()
    gc.freeze()


def _log_to_stderr(level: str) -> None:
    """Our own lines from a level on, and the access log at DEBUG; of the libraries only what is at least a WARNING.

    At DEBUG they tell whole SQL statements, and so everybody's prompts.
    """
    logging.basicConfig(
        level=max(logging.WARNING, logging.getLevelNamesMapping()[level]),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for ours in ("server", "pipelines", "storage", "uvicorn.access"):
        logging.getLogger(ours).setLevel(level)
    logging.getLogger("uvicorn.access").addFilter(_cut_query)


def _cut_query(line: logging.LogRecord) -> bool:
    """Take the query from a line of the access log: it may be what signs a picture's address."""
    if isinstance(line.args, tuple):
        line.args = tuple(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in line.args)
    return True


async def _serve(app: Litestar, server: uvicorn.Server, listener: socket.socket, announce: Callable[[], None]) -> bool:
    """Serve, and say whether the device was lost.

    The app's parts start and stop around the HTTP server, so that their errors reach the caller as they are.
    """
    async with app.lifespan():
        announce()
        lost: asyncio.Event = app.state.services.readiness.lost
        ending = asyncio.create_task(_stop_once_lost(lost, server))
        await server.serve(sockets=[listener])
        ending.cancel()
    return lost.is_set()


async def _stop_once_lost(lost: asyncio.Event, server: uvicorn.Server) -> None:
    await lost.wait()
    last_resort = threading.Timer(LAST_RESORT_SECONDS, _leave)
    last_resort.daemon = True
    last_resort.start()
    server.should_exit = True


def _leave() -> None:
    logging.shutdown()
    os._exit(EXIT_ENGINE_LOST)


class HttpServer(uvicorn.Server):
    """uvicorn, but the first signal lets it drain, while it goes on answering, and the second ends it at once.

    Args:
        drain: returns once it may stop.
        end_jobs: ends what is under way now.
    """

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], Coroutine[Any, Any, None]], end_jobs: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._end_jobs = end_jobs
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Call it on the event loop."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
            self._draining.add_done_callback(lambda _: self._exit())
        else:
            log.info("stopping at once")
            self._exit()

    def _exit(self) -> None:
        self._end_jobs()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._end_jobs()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def _listen(settings: Settings) -> socket.socket:
    """Bind first: a port that is taken should be known before a model is loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"Cannot listen on {settings.host}:{settings.port} ({error.strerror or error});"
            " choose another with --port or DARKROOM_PORT."
        ) from error
    return listener
