"""Measures a server's staying power: its event loop under load, what thousands of jobs leave behind, its restart."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any
from uuid import uuid4

import httpx

from pipelines.catalog import Catalog, ModelEntry
from pipelines.request import Wishes, settle
from server.gpu import WorkerThread
from server.identity.caller import LOCAL_OWNER
from server.jobs.events import Events
from server.jobs.jobs import Jobs
from server.jobs.orders import Order, to_job
from server.scheduling.loop import Scheduler
from server.weights import WeightHashes
from storage.database import Database
from storage.jobs import JobStore
from storage.media import ImageFormat
from storage.records import NewImage, NewJob
from storage.room import Room

from .report import Progress
from .stand_in import StandIn
from .statistics import percentile
from .watched import Watched, growth, watched

LAG_LIMIT, GROWTH_LIMIT, RECOVERY_LIMIT = 0.1, 50.0, 2.0
"""What is allowed: seconds of lag, megabytes more after the jobs, and seconds until a thousand jobs are in line."""

PAGE = 100
SIDE, STEP_SECONDS, STEPS = 1024, 0.02, 8
"""Of the pictures and steps under which the event loop is watched."""

AT_ONCE = 32
"""Requests that are under way at any time."""

BATCH = 500
"""Rows written in one transaction when a database is filled beforehand."""


@dataclass(frozen=True)
class Plan:
    """How much of everything: images there are beforehand, seconds of each phase, jobs of the soak and of restarts."""

    images: int = 10_000
    seconds: float = 30.0
    jobs: int = 10_000
    queued: tuple[int, ...] = (1_000, 10_000)


QUICK = Plan(images=1_000, seconds=2.0, jobs=200, queued=(100, 1_000))


def measure_soak(catalog: Catalog, plan: Plan, progress: Progress) -> dict[str, Any]:
    """All three. Raises ServerFailed."""
    return {
        "limits": {"lag_seconds": LAG_LIMIT, "growth_mb": GROWTH_LIMIT, "recovery_seconds": RECOVERY_LIMIT},
        "images": plan.images,
        "lag": _lag(catalog, plan, progress),
        "growth": _growth(catalog, plan, progress),
        "recovery": [asyncio.run(_recovery(catalog, count, progress)) for count in plan.queued],
    }


def _lag(catalog: Catalog, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """The event loop's lag while nothing happens, pictures are made, the history is read, and both."""
    phases: dict[str, tuple[Callable[[httpx.AsyncClient, float], Awaitable[int]], ...]] = {
        "idle": (),
        "generating": (_generate,),
        "listing": (_list,),
        "generating and listing": (_generate, _list),
    }
    with TemporaryDirectory(prefix="darkroom-benchmark-") as folder:
        data = Path(folder)
        progress(f"writing the rows of {plan.images} images")
        asyncio.run(_fill_images(data, catalog.resolve(None), plan.images))
        with watched(catalog, data, StandIn(STEP_SECONDS, SIDE)) as server:
            asyncio.run(_requests(server, 2 * AT_ONCE))  # what happens once happens now
            return [_phase(server, name, works, plan.seconds, progress) for name, works in phases.items()]


def _phase(server: Watched, name: str, works: Any, seconds: float, progress: Progress) -> dict[str, Any]:
    progress(f"{name}, for {seconds:g} s")
    server.look()
    done = asyncio.run(_together(server.url, works, seconds))
    lags = server.look().lags
    shares = {"p50": percentile(lags, 50), "p99": percentile(lags, 99), "max": max(lags)}
    return {"phase": name, "requests": done, "samples": len(lags)} | shares


async def _together(url: str, works: Any, seconds: float) -> int:
    async with _client(url) as client:
        counts = await asyncio.gather(asyncio.sleep(seconds, 0), *(work(client, seconds) for work in works))
    return sum(counts)


async def _generate(client: httpx.AsyncClient, seconds: float) -> int:
    end = monotonic() + seconds

    async def one_after_the_other() -> int:
        count = 0
        while monotonic() < end:
            await _make(client)
            count += 1
        return count

    return sum(await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE))))


async def _list(client: httpx.AsyncClient, seconds: float) -> int:
    """Page after page to the history's end, and again."""
    end, count, page = monotonic() + seconds, 0, 1
    while monotonic() < end:
        answer = await client.get("/api/images/history", params={"page": page, "perPage": PAGE})
        answer.raise_for_status()
        page = page + 1 if answer.json()["images"] else 1
        count += 1
    return count


async def _make(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a lighthouse", "steps": STEPS}
    (await client.post("/v1/images/generations", json=body)).raise_for_status()


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=2 * AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as client:
        yield client


async def _requests(server: Watched, count: int) -> None:
    """So many jobs, AT_ONCE at a time."""
    left = iter(range(count))

    async def work(client: httpx.AsyncClient) -> None:
        for _ in left:
            await _make(client)

    async with _client(server.url) as client:
        await asyncio.gather(*(work(client) for _ in range(AT_ONCE)))


def _growth(catalog: Catalog, plan: Plan, progress: Progress) -> dict[str, Any]:
    """What many small jobs leave behind in a server that has done some before."""
    with (
        TemporaryDirectory(prefix="darkroom-benchmark-") as folder,
        watched(catalog, Path(folder), StandIn(0.0, 64)) as server,
    ):
        asyncio.run(_requests(server, plan.jobs // 10))
        before, began = server.look(), monotonic()
        progress(f"{plan.jobs} jobs")
        asyncio.run(_requests(server, plan.jobs))
        seconds, after = monotonic() - began, server.look()
    return {
        "jobs": plan.jobs,
        "jobs_per_second": plan.jobs / seconds,
        "lag_p99": percentile(after.lags, 99),
        "lag_max": max(after.lags),
        "resident_mb_before": before.resident_bytes / 1e6,
        "more": growth(before, after),
    }


async def _recovery(catalog: Catalog, count: int, progress: Progress) -> dict[str, Any]:
    """Seconds until so many queued jobs are in line after a restart, and whether they are in their order."""
    progress(f"a restart with {count} queued jobs")
    with TemporaryDirectory(prefix="darkroom-benchmark-") as folder:
        data = Path(folder)
        database = await Database.open(data)
        store, entry = JobStore(database), catalog.resolve(None)
        accepted = [(await store.insert(_queued(entry, seed))).id for seed in range(count)]
        gpu = WorkerThread("gpu")
        scheduler = Scheduler(StandIn(0.0, 64), gpu, gpu, max_rows=16, queue_limit=count)
        jobs = Jobs(database, Room(data), scheduler, WeightHashes(None), Events())
        began = monotonic()
        await jobs.recover(catalog)
        while scheduler.depth < count:
            await asyncio.sleep(0)
        seconds = monotonic() - began
        in_order = [job.id for job in jobs.waiting] == accepted
        await jobs.close()
        await database.close()
        gpu.close()
    return {"queued": count, "seconds": seconds, "in_order": in_order}


def _queued(entry: ModelEntry, seed: int) -> NewJob:
    request = settle(Wishes("a lighthouse"), entry, seed)
    return to_job(Order(LOCAL_OWNER, entry, [request], attached=False))


async def _fill_images(data: Path, entry: ModelEntry, count: int) -> None:
    database = await Database.open(data)
    store = JobStore(database)
    for start in range(0, count, BATCH):
        job = await store.insert(_queued(entry, start))
        await store.start(job.id, "before")
        await store.complete(
            job.id, "before", [_image(entry, seed) for seed in range(start, min(count, start + BATCH))]
        )
    await database.close()


def _image(entry: ModelEntry, seed: int) -> NewImage:
    return NewImage(
        id=str(uuid4()),
        index=seed % BATCH,
        prompt="a lighthouse at dusk, seen from the sea",
        negative_prompt="fog",
        model=entry.name,
        family=entry.family,
        model_hash=None,
        seed=seed,
        width=entry.width,
        height=entry.height,
        steps=entry.steps,
        guidance_scale=entry.guidance_scale,
        sampler=entry.sampler,
        schedule=entry.schedule,
        parameters={},
        format=ImageFormat.PNG,
        byte_count=1,
        sha256="0" * 64,
        generation_seconds=1.0,
        cost=0.0,
        created_at=datetime.now(UTC),
    )
