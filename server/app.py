"""The application: where the parts of a server are put together, and nowhere else."""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from litestar import Litestar, Request, Response, get
from litestar.datastructures import MutableScopeHeaders, State
from litestar.di import Provide
from litestar.response import Redirect
from litestar.routes import HTTPRoute
from litestar.static_files import create_static_files_router
from litestar.types import Message, Scope

from pipelines.budgets import size_bytes
from pipelines.catalog import Catalog
from pipelines.errors import DeviceLost, PipelineError
from pipelines.hashing import CACHE_NAME
from server.answers import handle, request_id
from server.catalogue import Catalogue
from server.disconnect import ClientGone
from server.endings import Listener
from server.gpu import WorkerThread
from server.identity.gate import Gate
from server.identity.guard import PUBLIC, authorise, caller_of, screen
from server.identity.keys import Keys
from server.identity.links import Links
from server.identity.local_pass import LocalPass, remove_pass, write_pass
from server.identity.tokens import Tokens, Trust
from server.jobs.events import Events
from server.jobs.feed import Feed
from server.jobs.jobs import Jobs
from server.jobs.progress import Progress
from server.jobs.resuming import resume
from server.limits import Allowances, Limits
from server.metrics import Metrics, Snapshot
from server.openapi.page import openapi_config
from server.outbound.addresses import Rules
from server.outbound.client import Outbound
from server.overview import Overview
from server.room import heed
from server.routes import controllers
from server.scheduling.loop import Scheduler
from server.scheduling.verbs import EngineVerbs
from server.settings import Settings, pairs_of
from server.state import Readiness, Services
from server.tracing import tracing
from server.watchdog import watch
from server.webhooks.dispatcher import Dispatcher
from server.weights import WeightHashes
from storage.admissions import Admissions
from storage.credits import Credits
from storage.database import Database
from storage.keys import KeyStore
from storage.room import Room
from storage.secrets import secret
from storage.stats import Stats
from storage.webhooks import DeliveryStore, WebhookStore

log = logging.getLogger(__name__)

WEB = Path(__file__).parent / "web"


def create_app(settings: Settings, catalog: Catalog, new_engine: Callable[[], EngineVerbs]) -> Litestar:
    """A server that listens nowhere yet.

    Args:
        settings: the machine's.
        catalog: the models it offers at first; if it was read from a file, edits of that file are followed.
        new_engine: makes the engine; called on the GPU thread once the server starts.
    """

    @asynccontextmanager
    async def running(app: Litestar) -> AsyncIterator[None]:
        async with tracing() as traced, _services(settings, catalog, new_engine, traced) as services:
            app.state.services = services
            yield

    return Litestar(
        route_handlers=[*controllers(), home, create_static_files_router("/assets", [WEB], opt=PUBLIC)],
        dependencies={
            "services": Provide(_from_state, sync_to_thread=False),
            "caller": Provide(caller_of, sync_to_thread=False),
        },
        guards=[screen, authorise],
        exception_handlers={Exception: handle, ClientGone: _nobody},
        lifespan=[running],
        before_send=[_name_request, _tell_methods],
        openapi_config=openapi_config(version("darkroom")),
        logging_config=None,
    )


@get("/", include_in_schema=False, opt=PUBLIC, sync_to_thread=False)
def home() -> Redirect:
    """A person who opens the server lands on its documentation."""
    return Redirect("/docs")


@asynccontextmanager
async def _services(
    settings: Settings, catalog: Catalog, new_engine: Callable[[], EngineVerbs], traced: Listener
) -> AsyncIterator[Services]:
    """Start the parts in order, hand them out, and stop them in the opposite order."""
    database = await Database.open(settings.data)
    gpu, loader = WorkerThread("gpu"), WorkerThread("loader")
    try:
        local = write_pass(settings.data, settings.url)
        engine = await gpu(new_engine)
        metrics = Metrics()
        scheduler = Scheduler(
            engine,
            gpu,
            loader,
            max_rows=settings.max_rows,
            queue_limit=settings.queue_limit,
            queue_seconds=settings.queue_seconds,
            idle_seconds=60 * settings.idle_unload,
            meter=metrics,
        )
        metrics.registry.register(Snapshot(scheduler, settings.data))
        weights = WeightHashes(settings.data / CACHE_NAME)
        events = Events()
        limits = Limits.of(settings)
        room = Room(settings.data, size_bytes(settings.min_free, shutil.disk_usage(settings.data).total))
        jobs = Jobs(database, room, scheduler, weights, events, [metrics.job_ended, traced], limits)
        await jobs.recover(catalog)
        readiness = Readiness({"models": "the default model is loading"})
        overview = Overview(scheduler, metrics)
        gate = _gate(settings, database, local)
        if settings.auth == "keys" and not await gate.keys.store.all():
            log.warning("nobody has a key yet: `darkroom keys create NAME --operator` makes one")
        if settings.credits == "on" and not settings.auth_enabled:
            log.warning("DARKROOM_CREDITS=on charges nobody while DARKROOM_AUTH=off: everybody is an operator")
        links = Links(await secret(database, "links") if settings.auth_enabled else None, settings.link_hours)
        progress = Progress(jobs, scheduler, overview, links)
        outbound = Outbound(Rules.parse(settings.webhook_hosts))
        dispatcher = Dispatcher(DeliveryStore(database), outbound, database.events_written, links, settings.public_url)
        services = Services(
            settings=settings,
            catalogue=Catalogue(catalog),
            scheduler=scheduler,
            jobs=jobs,
            weights=weights,
            readiness=readiness,
            metrics=metrics,
            overview=overview,
            progress=progress,
            feed=Feed(jobs, events, progress, scheduler.previews),
            stats=Stats(database),
            gate=gate,
            links=links,
            allowances=Allowances(limits, Admissions(database)),
            credits=Credits(database),
            webhooks=WebhookStore(database),
            outbound=outbound,
        )
        computing = asyncio.create_task(scheduler.run())
        computing.add_done_callback(lambda task: _stopped(task, services))
        helping = [watch(gpu), heed(room, scheduler), resume(jobs, services.catalogue), _follow(services)]
        helping.append(dispatcher.run())
        tasks = [*(asyncio.create_task(help) for help in helping), computing]
        for task in tasks:
            task.add_done_callback(_told)
        try:
            yield services
        finally:
            await jobs.close()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    finally:
        try:
            remove_pass(settings.data)
            await database.close()
        finally:
            loader.close()
            gpu.close()  # the last, for it is waited for, and a supervisor's patience may end before a long load does


def _gate(settings: Settings, database: Database, local: LocalPass) -> Gate:
    tokens = None
    if settings.auth == "jwt":
        operators = pairs_of(settings.jwt_operators)
        trust = Trust(settings.jwt_secret, settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks, operators)
        tokens = Tokens(trust)
    return Gate(settings.auth_enabled, Keys(KeyStore(database)), tokens, local.token)


async def _follow(services: Services) -> None:
    """Load the default model, and from then on carry out what an edit of models.toml asks for."""
    await services.weights.recall(services.catalog.entries.values())
    async with asyncio.TaskGroup() as loads:
        loads.create_task(_load_default(services))
        async for former in services.catalogue.changes():
            services.scheduler.retire(services.catalogue.retired)
            await services.weights.recall(services.catalog.entries.values())
            if services.catalog.resolve(None).identity != former.resolve(None).identity:
                loads.create_task(_load_default(services))


async def _load_default(services: Services) -> None:
    """Load the default model before anybody asks for it; other models load when they are first wanted."""
    entry = services.catalog.resolve(None)
    services.weights.begin(entry)
    try:
        await services.scheduler.load(entry)
    except DeviceLost:
        return  # the scheduler ends by it too, and says so
    except Exception as error:
        log.error("the default model cannot be loaded: %s", error, exc_info=not isinstance(error, PipelineError))
        services.jobs.broken.add(entry.identity)
    else:
        if entry.identity in services.scheduler.models.resident:
            services.jobs.broken.discard(entry.identity)
            services.weights.begin(entry)  # a hub's files are here only now
        log.info("ready: %s", ", ".join(services.scheduler.resident))
    finally:
        if services.catalog.resolve(None).identity == entry.identity:  # else the one that took its place is loading
            services.readiness.missing.pop("models", None)


def _stopped(task: "asyncio.Task[None]", services: Services) -> None:
    """Nobody computes any more: whoever waits must hear so, and nobody else may come to wait."""
    if task.cancelled() or (error := task.exception()) is None:
        return
    if isinstance(error, DeviceLost):
        log.critical("%s What is under way is left to the next start.", error)
        services.readiness.missing["engine"] = str(error)
        services.jobs.stop(error)
    else:
        log.critical("the scheduler stopped", exc_info=error)
        services.readiness.missing["scheduler"] = "it stopped unexpectedly; the process ends, to be started anew"
        services.jobs.stop()
    services.readiness.lost.set()


def _told(task: "asyncio.Task[None]") -> None:
    """A part of the server that ends by an error says so, and the others go on."""
    if not task.cancelled() and (error := task.exception()) and not isinstance(error, DeviceLost):
        log.critical("a part of the server stopped", exc_info=error)


def _from_state(state: State) -> Services:
    services: Services = state.services
    return services


async def _name_request(message: Message, scope: Scope) -> None:
    """Every answer has an id by which the log can be searched."""
    if message["type"] == "http.response.start":
        MutableScopeHeaders(message)["x-request-id"] = request_id(scope)


async def _tell_methods(message: Message, scope: Scope) -> None:
    """Litestar's own answer to OPTIONS knows only one handler's methods, where a path has several handlers."""
    if message["type"] == "http.response.start" and scope.get("method") == "OPTIONS":
        here = [route for route in scope["litestar_app"].routes if route.path_format == scope.get("path_template")]
        methods = {method for route in here if isinstance(route, HTTPRoute) for method in route.methods}
        if methods:
            MutableScopeHeaders(message)["Allow"] = ", ".join(sorted(methods))


def _nobody(request: Request[Any, Any, Any], error: ClientGone) -> Response[None]:
    """499, as nginx calls it; it reaches no one."""
    return Response(None, status_code=499)
