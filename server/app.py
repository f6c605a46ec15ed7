"""The application: where the parts of a server are put together, and nowhere else."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from litestar import Litestar, Request, Response, get
from litestar.datastructures import MutableScopeHeaders, State
from litestar.di import Provide
from litestar.exceptions import NotFoundException
from litestar.response import Redirect
from litestar.static_files import create_static_files_router
from litestar.types import Message, Scope

from pipelines.catalog import Catalog
from pipelines.errors import InvalidRequest, PipelineError
from server.cross_site import refuse_cross_site
from server.disconnect import ClientGone
from server.errors import handle, request_id
from server.gpu import WorkerThread
from server.jobs import Jobs
from server.metrics import Metrics, Snapshot
from server.openapi import openapi_config
from server.overview import Overview
from server.routes import controllers
from server.scheduling.loop import Scheduler
from server.scheduling.verbs import EngineVerbs
from server.settings import Settings
from server.state import Readiness, Services
from storage.database import Database

log = logging.getLogger(__name__)

WEB = Path(__file__).parent / "web"


def create_app(settings: Settings, catalog: Catalog, new_engine: Callable[[], EngineVerbs]) -> Litestar:
    """A server that listens nowhere yet.

    Args:
        settings: the machine's.
        catalog: the models it offers.
        new_engine: makes the engine; called on the GPU thread once the server starts.
    """

    @asynccontextmanager
    async def running(app: Litestar) -> AsyncIterator[None]:
        async with _services(settings, catalog, new_engine) as services:
            app.state.services = services
            yield

    return Litestar(
        route_handlers=[*controllers(), home, create_static_files_router("/assets", [WEB])],
        dependencies={"services": Provide(_from_state, sync_to_thread=False)},
        exception_handlers={Exception: handle, ClientGone: _nobody},
        lifespan=[running],
        before_request=_guard,
        before_send=[_name_request],
        openapi_config=openapi_config(version("darkroom")),
        logging_config=None,
    )


@get("/", include_in_schema=False, sync_to_thread=False)
def home() -> Redirect:
    """A person who opens the server lands on its documentation."""
    return Redirect("/docs")


@asynccontextmanager
async def _services(
    settings: Settings, catalog: Catalog, new_engine: Callable[[], EngineVerbs]
) -> AsyncIterator[Services]:
    """Start the parts in order, hand them out, and stop them in the opposite order."""
    database = await Database.open(settings.data)
    gpu, loader = WorkerThread("gpu"), WorkerThread("loader")
    try:
        engine = await gpu(new_engine)
        metrics = Metrics()
        scheduler = Scheduler(
            engine,
            gpu,
            loader,
            max_rows=settings.max_rows,
            queue_limit=settings.queue_limit,
            queue_seconds=settings.queue_seconds,
            meter=metrics,
        )
        metrics.registry.register(Snapshot(scheduler, settings.data))
        jobs = Jobs(database, settings.data, scheduler)
        await jobs.recover()
        readiness = Readiness({"models": "the default model is loading"})
        overview = Overview(scheduler, metrics)
        services = Services(settings, catalog, scheduler, jobs, readiness, metrics, overview)
        worker = asyncio.create_task(scheduler.run())
        worker.add_done_callback(lambda task: _stopped(task, services))
        loading = asyncio.create_task(_load_default(services))
        try:
            yield services
        finally:
            await jobs.close()
            for task in (loading, worker):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
    finally:
        try:
            await database.close()
        finally:
            loader.close()
            gpu.close()  # the last, for it is waited for, and a supervisor's patience may end before a long load does


async def _load_default(services: Services) -> None:
    """Load the default model before anybody asks for it; other models load when they are first wanted."""
    entry = services.catalog.resolve(None)
    try:
        await services.scheduler.load(entry)
    except Exception as error:
        log.error("the default model cannot be loaded: %s", error, exc_info=not isinstance(error, PipelineError))
        services.jobs.broken.add(entry.name)
    else:
        log.info("ready: %s", ", ".join(services.scheduler.resident))
    finally:
        del services.readiness.missing["models"]


def _stopped(task: "asyncio.Task[None]", services: Services) -> None:
    """Nobody computes any more: whoever waits must hear so, and nobody else may come to wait."""
    if not task.cancelled() and (error := task.exception()):
        log.critical("the scheduler stopped", exc_info=error)
        services.readiness.missing["scheduler"] = "it stopped unexpectedly; restart the server"
        services.jobs.stop()


def _from_state(state: State) -> Services:
    services: Services = state.services
    return services


def _guard(request: Request[Any, Any, Any]) -> None:
    """Refuse, before any handler, what no handler should see."""
    if "\0" in request.scope["path"]:
        raise NotFoundException  # to the system's own calls such a path is an error of another kind
    try:
        _ = urlsplit(f"//{request.headers.get('host', '')}").port  # a picture's absolute URL is built from it later
    except ValueError as error:
        raise InvalidRequest("Host", "Host: it must be a host, and a port of at most 65535 if any.") from error
    services: Services = request.app.state.services
    refuse_cross_site(request, services.settings.public_url)


async def _name_request(message: Message, scope: Scope) -> None:
    """Every answer has an id by which the log can be searched."""
    if message["type"] == "http.response.start":
        MutableScopeHeaders(message)["x-request-id"] = request_id(scope)


def _nobody(request: Request[Any, Any, Any], error: ClientGone) -> Response[None]:
    """499, as nginx calls it; it reaches no one."""
    return Response(None, status_code=499)
