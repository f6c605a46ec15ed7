"""What a step costs, learnt from the steps that ran. Pure: no clock, no torch, no event loop."""

from collections.abc import Iterable
from typing import Protocol

from pipelines.request import BatchKey

SMOOTHING = 0.2
"""Weight of the newest observation in the exponentially weighted mean."""

UNKNOWN_SECONDS_PER_ROW = 0.1
"""Before anything was measured: an estimate must be given, and a short one is corrected soonest."""


class Remaining(Protocol):
    """An image as the cost model sees it."""

    @property
    def key(self) -> BatchKey: ...
    @property
    def rows(self) -> int: ...
    @property
    def evaluations_left(self) -> int: ...


class CostModel:
    """Seconds that one row adds to a forward pass: one rate per batch key, whatever the number of rows beside it."""

    def __init__(self) -> None:
        self._per_row: dict[BatchKey, float] = {}

    def observe(self, key: BatchKey, rows: int, seconds: float) -> None:
        """Learn from one real step."""
        seen = self._per_row.get(key)
        fresh = seconds / rows
        self._per_row[key] = fresh if seen is None else seen + SMOOTHING * (fresh - seen)

    def knows(self, model: str) -> bool:
        """Whether a step of this model was ever measured, at whatever size."""
        return any(key.model == model for key in self._per_row)

    def seconds_per_row(self, key: BatchKey) -> float:
        """Seconds one row adds to a step; for a key never seen, that of the model's nearest size, by pixels."""
        if key in self._per_row:
            return self._per_row[key]
        pixels = key.width * key.height
        known = [other for other in self._per_row if other.model == key.model]
        if not known:
            return UNKNOWN_SECONDS_PER_ROW
        nearest = min(known, key=lambda other: abs(other.width * other.height - pixels))
        return self._per_row[nearest] * pixels / (nearest.width * nearest.height)

    def seconds_left(self, images: Iterable[Remaining]) -> float:
        """How long the device needs for all of these images together."""
        return sum(image.rows * image.evaluations_left * self.seconds_per_row(image.key) for image in images)
