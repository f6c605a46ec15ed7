"""Who has had their share: the time each image would have had of a device shared equally. Pure: no clock of its own."""

from collections import Counter

MOST_SHARES = 3.0
"""An image that equal sharing would have finished this many times over goes before all others of its class."""


class FairClock:
    """Processor sharing, reckoned: owners share the device equally, and each owner's images share the owner's part.

    It is the yardstick of fair queueing (Demers, Keshav and Shenker, 1989, doi:10.1145/75247.75248): nobody computes
    in such small slices, but whoever ends long after equal sharing would have ended them has been treated unfairly.
    """

    def __init__(self) -> None:
        self._images = Counter[str]()
        self._each: dict[str, float] = {}

    def enter(self, owner: str) -> float:
        """An image of this owner is there from now on; returns where its owner's clock stands."""
        self._images[owner] += 1
        return self._each.setdefault(owner, 0.0)

    def leave(self, owner: str) -> None:
        """An image of this owner is gone."""
        self._images[owner] -= 1
        if not self._images[owner]:
            del self._images[owner]
            del self._each[owner]

    def advance(self, seconds: float) -> None:
        """So much of the device's time went by, whoever used it."""
        for owner, images in self._images.items():
            self._each[owner] += seconds / len(self._images) / images

    def received(self, owner: str, since: float) -> float:
        """Seconds an image would have had of the device since its owner's clock stood there."""
        return self._each.get(owner, since) - since

    def copy(self) -> "FairClock":
        """Another clock that stands where this one does."""
        other = FairClock()
        other._images = self._images.copy()
        other._each = self._each.copy()
        return other
