"""The arithmetic of the report: percentiles, the knee, and what a run of served requests comes to. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from statistics import fmean
from typing import Any

from server.scheduling.cost import KNEE_SLACK

SLO_SLOWDOWN = 3.0
"""A request is served well when it takes at most this many times its own solo time."""


@dataclass(frozen=True)
class Served:
    """One request's fate. Times are seconds on the client's monotonic clock.

    Attributes:
        kind: the workload's class it belongs to.
        due: when it was to be sent; latency counts from here, so a slow client hides nothing.
        done: when its picture was there, or None.
        error: why there is none.
        first_step: when its first denoising step was done, where the server could tell.
        promised: seconds that the server expected it to take when it came, where it says so.
    """

    kind: str
    seed: int
    due: float
    done: float | None = None
    error: str | None = None
    first_step: float | None = None
    promised: float | None = None

    @property
    def latency(self) -> float | None:
        return None if self.done is None else self.done - self.due


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, interpolated linearly (method 7 of Hyndman and Fan).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("a percentile of nothing")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low, high = ordered[floor(place)], ordered[ceil(place)]
    return low + (high - low) * (place - floor(place))


def knee(seconds: Mapping[int, float], slack: float = KNEE_SLACK) -> int:
    """The fewest rows whose throughput is within `slack` of the best.

    Args:
        seconds: of one forward pass, by its rows.
    """
    throughput = {rows: rows / duration for rows, duration in seconds.items()}
    best = max(throughput.values())
    return min(rows for rows, value in throughput.items() if value >= (1 - slack) * best)


def slowdowns(served: Sequence[Served], solo: Mapping[str, float]) -> list[float]:
    """Each finished request's latency over the solo time of its class."""
    return [request.latency / solo[request.kind] for request in served if request.latency is not None]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and percentiles; None of nothing."""
    if not values:
        return None
    return {"mean": fmean(values)} | {f"p{percent}": percentile(values, percent) for percent in (50, 95, 99)}


def summarize(served: Sequence[Served], solo: Mapping[str, float], began: float) -> dict[str, Any]:
    """What one run of one system comes to.

    Args:
        served: every request that was to be sent.
        solo: seconds of a request alone, by class.
        began: when the run began.
    """
    finished = [request for request in served if request.done is not None]
    slow = slowdowns(served, solo)
    lasted = max((request.done for request in finished if request.done is not None), default=began) - began
    good = sum(slowdown <= SLO_SLOWDOWN for slowdown in slow)
    errors = [abs(one.promised / one.latency - 1) for one in finished if one.promised and one.latency]
    first = [request.first_step - request.due for request in served if request.first_step is not None]
    return {
        "requests": len(served),
        "completed": len(finished),
        "errors": _errors(served),
        "seconds": lasted,
        "throughput": len(finished) / lasted if lasted else 0.0,
        "goodput": good / lasted if lasted else 0.0,
        "within_slo": good / len(served) if served else 0.0,
        "latency": spread([request.latency for request in finished if request.latency is not None]),
        "slowdown": spread(slow),
        "first_step": spread(first),
        "eta_error": percentile(errors, 50) if errors else None,
    }


def _errors(served: Sequence[Served]) -> dict[str, int]:
    names = [request.error for request in served if request.error is not None]
    return {name: names.count(name) for name in sorted(set(names))}
