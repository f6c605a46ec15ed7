"""What a simulated run comes to. Pure."""

from collections.abc import Sequence
from typing import Any

if __package__ and __package__.startswith("scripts"):
    from scripts.benchmarking.statistics import SLO_SLOWDOWN, percentile, spread
else:
    from benchmarking.statistics import SLO_SLOWDOWN, percentile, spread

from .servers import Image


def figures(images: Sequence[Image]) -> dict[str, Any]:
    """Latency and slowdown of the images that were made, those of each priority apart, and what was promised them.

    Seconds count from when an image was accepted. Goodput is the pictures that took at most SLO_SLOWDOWN times their
    solo time, a second of the whole run.
    """
    made = [image for image in images if image.done is not None]
    lasted = max(image.done or 0.0 for image in made)
    good = sum(image.slowdown <= SLO_SLOWDOWN for image in made)
    errors = [abs(image.promised / image.latency - 1) for image in made if image.promised is not None]
    by_priority = {
        str(priority): spread([image.slowdown for image in made if image.priority == priority])
        for priority in sorted({image.priority for image in made})
    }
    return {
        "lost": len(images) - len(made),
        "latency": _spread([image.latency for image in made]),
        "slowdown": _spread([image.slowdown for image in made]),
        "slowdown_by_priority": by_priority,
        "within": good / len(images),
        "goodput": good / lasted,
        "throughput": len(made) / lasted,
        "most_shares": max(image.had for image in made),
        "eta_error": percentile(errors, 50) if errors else None,
    }


def row(run: dict[str, Any]) -> list[Any]:
    """One line of the table."""
    latency, slowdown = run["latency"], run["slowdown"]
    cells = [run["load"], run["system"], *(latency[name] for name in ("mean", "p50", "p95", "p99", "max"))]
    return [*cells, slowdown["mean"], slowdown["p95"], slowdown["max"], f"{run['within']:.0%}", run["goodput"]]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return (spread(values) or {}) | {"max": max(values)}
