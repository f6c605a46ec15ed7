"""What is known to fit in the device's memory: rows for each batch key, sizes for each model."""

from collections.abc import Callable, Iterable, Mapping
from time import monotonic

from pipelines.errors import ImageTooLarge
from pipelines.request import BatchKey

CAP_SECONDS = 5 * 60
"""How long a key keeps its lower cap: a shortage may pass, and then rows are worth another try."""


class Fitting:
    """What fitted so far, and what did not.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._caps: dict[BatchKey, tuple[int, float]] = {}
        self._largest: dict[str, tuple[int, int]] = {}

    @property
    def row_caps(self) -> Mapping[BatchKey, int]:
        """The most rows a key's forward pass has memory for, where it lacked any of late."""
        now = self._clock()
        return {key: rows for key, (rows, until) in self._caps.items() if now < until}

    def halved(self, key: BatchKey, fitted: Iterable[int], lacking: Iterable[int]) -> None:
        """Learn from one step how many rows ran and how many lacked memory; both in rows a forward pass."""
        few, least, now = sorted(fitted), min(lacking), self._clock()
        self._caps = {known: cap for known, cap in self._caps.items() if now < cap[1]}
        if few:  # else not one image fits, and no cap helps
            self._caps[key] = (max((rows for rows in few if rows < least), default=few[0]), now + CAP_SECONDS)

    def finished(self, key: BatchKey) -> None:
        """Learn that a picture went all the way."""
        size = (key.width, key.height)
        self._largest[key.model] = max(size, self._largest.get(key.model, size), key=_pixels)

    def too_large(self, key: BatchKey) -> ImageTooLarge:
        """What is said of a picture that does not fit even alone."""
        size, known = (key.width, key.height), self._largest.get(key.model)
        lack = f"the device has too little memory for a picture of {_shown(size)}"
        if known is None:
            return ImageTooLarge(f"{lack}; ask for a smaller size.")
        if _pixels(known) < _pixels(size):
            return ImageTooLarge(f"{lack}; the largest of this model that is known to fit is {_shown(known)}.")
        return ImageTooLarge(f"{lack} now, though {_shown(known)} did fit; try later, or ask for a smaller size.")


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
