"""Requests over HTTP: the same Poisson traces for Darkroom, `lock` and `window`, at rates to past saturation."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from .client import play, send_one
from .models import Model
from .overhead import measure_overhead
from .processes import DARKROOM, Running, ServerFailed, running
from .report import Progress
from .statistics import Served, summarize
from .workload import Arrival, Kind, Workload

SOLO_REPEATS = 3
START_PATIENCE = 300.0
LEAST_REQUESTS = 3
SETUP_SECONDS = 900
"""Time for starting and for the measurements before the sweep, as part of the servers' longest life."""


@dataclass(frozen=True)
class Plan:
    """How much is measured. `requests` of each run; None fits all runs into `seconds`."""

    workload: Workload
    systems: Sequence[str]
    multiples: Sequence[float]
    seconds: float
    requests: int | None = None
    seed: int = 0

    def count(self, multiple: float, capacity: float) -> int:
        """Requests of each run at one rate, such that every run takes about as long.

        Below the lock's capacity a run lasts as long as its arrivals do, beyond it as long as its work.
        """
        if self.requests is not None:
            return self.requests
        each = self.seconds / (len(self.multiples) * len(self.systems))
        return max(LEAST_REQUESTS, round(each * capacity * min(multiple, 1.0)))


def measure_serving(model: Model, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Start the systems, measure solo times and overhead, sweep the rates.

    Raises:
        ServerFailed: a system did not start, or cannot make a picture.
    """
    progress(f"starting {', '.join(plan.systems)}")
    lifetime = SETUP_SECONDS + 10 * plan.seconds
    with running(plan.systems, model, lifetime) as servers:
        return asyncio.run(_measure(model, plan, servers, progress))


async def _measure(model: Model, plan: Plan, servers: Mapping[str, Running], progress: Progress) -> dict[str, Any]:
    await _warm_up(plan, servers, progress)
    judge = servers["lock"]
    solo = {kind.name: await _solo(judge, plan.workload, kind, progress) for kind in plan.workload.kinds}
    capacity = 1 / sum(kind.share * solo[kind.name] for kind in plan.workload.kinds)
    progress(f"lock makes {capacity:.3g} images a second")
    results: dict[str, Any] = {
        "workload": plan.workload.name,
        "solo_seconds": solo,
        "lock_capacity": capacity,
    }
    if DARKROOM in servers:
        results["overhead"] = await measure_overhead(servers[DARKROOM], model.entry, progress)
    results["runs"] = [
        await _run(servers[system], plan, multiple, capacity, solo, progress)
        for number, multiple in enumerate(plan.multiples)
        for system in _rotated(plan.systems, number)
    ]
    return results


async def _warm_up(plan: Plan, servers: Mapping[str, Running], progress: Progress) -> None:
    """Each system makes one picture of each class: whoever is first pays for what is done once."""
    for system, server in servers.items():
        for kind in plan.workload.kinds:
            served = await send_one(server.url, _example(plan.workload, kind), START_PATIENCE)
            _insist(system, served)
        progress(f"{system} is warm")


async def _solo(server: Running, workload: Workload, kind: Kind, progress: Progress) -> float:
    """A class's own time: the median of a few requests with nobody else there."""
    times = []
    for _ in range(SOLO_REPEATS):
        served = await send_one(server.url, _example(workload, kind), START_PATIENCE)
        times.append(_insist(server.system, served))
    progress(f"solo {kind.name}: {median(times):.3f} s")
    return median(times)


async def _run(
    server: Running,
    plan: Plan,
    multiple: float,
    capacity: float,
    solo: Mapping[str, float],
    progress: Progress,
) -> dict[str, Any]:
    trace = plan.workload.trace(multiple * capacity, plan.count(multiple, capacity), plan.seed)
    # Twice what the lock would need after the last arrival: only what is broken is given up.
    patience = trace[-1].at + 2 * sum(solo[arrival.kind] for arrival in trace) + 10
    server.observations()  # of nobody's interest: what came before this run
    began, served = await play(server.url, trace, patience)
    if any(request.error for request in served):
        # A server that goes on with what was given up must not spoil the next run.
        await send_one(server.url, _example(plan.workload, plan.workload.kinds[-1]), START_PATIENCE)
    seen = server.observations()
    served = [replace(request, first_step=seen.first_steps.get(request.seed)) for request in served]
    summary = summarize(served, solo, began)
    summary["batch"] = {"mean": fmean(seen.batches), "largest": max(seen.batches)} if seen.batches else None
    progress(_line(server.system, multiple, summary))
    return {"system": server.system, "multiple": multiple, "rate": multiple * capacity} | summary


def _line(system: str, multiple: float, summary: Mapping[str, Any]) -> str:
    latency = summary["latency"] or {"p50": float("nan"), "p95": float("nan")}
    return (
        f"{multiple:g} x lock, {system}: {summary['completed']}/{summary['requests']} pictures,"
        f" {summary['throughput']:.3g}/s, p50 {latency['p50']:.2f} s, p95 {latency['p95']:.2f} s"
    )


def _example(workload: Workload, kind: Kind) -> Arrival:
    """A request of one class."""
    return Workload(workload.name, (kind,)).trace(1.0, 1)[0]


def _insist(system: str, served: Served) -> float:
    if served.latency is None:
        raise ServerFailed(f"the {system} server made no picture: {served.error}")
    return served.latency


def _rotated(systems: Sequence[str], by: int) -> list[str]:
    """Whoever was first is last next time, so that a drift of the machine hits all alike."""
    turn = by % len(systems)
    return [*systems[turn:], *systems[:turn]]
