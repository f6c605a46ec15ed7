"""What Darkroom adds to the bare networks when a request is alone, and where that goes."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from pipelines.catalog import ModelEntry

from .client import send_one
from .observing import NETWORKS, VERBS
from .processes import Running, ServerFailed
from .report import Progress
from .workload import uniform

REPEATS = 7
PATIENCE = 300.0
LIMIT = 0.10
"""Overhead above this share of a request's time is too much."""


async def measure_overhead(server: Running, entry: ModelEntry, progress: Progress) -> dict[str, Any]:
    """Solo requests of the model's own size and steps, each with a prompt of its own.

    Returns:
        medians over the requests, in seconds: the whole, each network, the engine's own work around them (noise,
        samplers, guidance, pixels), and the rest (HTTP, hops between threads, database, PNG, disk).

    Raises:
        ServerFailed: no picture was made.
    """
    server.observations()
    samples: list[dict[str, float]] = []
    # The first warms up what the first request of a shape pays for.
    for arrival in uniform(entry).trace(1.0, REPEATS + 1, seed=1):
        served = await send_one(server.url, arrival, PATIENCE)
        if served.latency is None:
            raise ServerFailed(f"the {server.system} server made no picture: {served.error}")
        samples.append(split(served.latency, server.observations().seconds))
    middle = {name: median(sample[name] for sample in samples[1:]) for name in samples[0]}
    progress(f"overhead {middle['share']:.1%} of a solo request's {middle['total']:.3f} s")
    return middle | {"limit": LIMIT}


def split(total: float, seconds: Mapping[str, float]) -> dict[str, float]:
    """One request's time, by where it went.

    Args:
        total: seconds from sending to having the picture.
        seconds: of each span of the observer.
    """
    networks = {name: seconds.get(name, 0.0) for name in NETWORKS}
    verbs = sum(value for name, value in seconds.items() if name.startswith(VERBS))
    bare = sum(networks.values())
    return {
        "total": total,
        **networks,
        "engine": verbs - bare,
        "rest": total - verbs,
        "share": (total - bare) / total,
    }
