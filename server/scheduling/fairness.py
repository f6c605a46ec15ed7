"""Who has had their share: the time each image would have had of a device shared equally. Pure: no clock of its own."""

from collections import Counter

MOST_SHARES = 3.0
"""An image that equal sharing would have finished this many times over goes before all others of its class."""


Party = tuple[str, str]
"""An owner, and whom of its users it asks for; the latter may be nobody."""


class FairClock:
    """Processor sharing, reckoned.

    Owners share the device equally, the users that an owner names share its part, and each user's images share theirs.

    It is the yardstick of fair queueing (Demers, Keshav and Shenker, 1989, doi:10.1145/75247.75248): nobody computes
    in such small slices, but whoever ends long after equal sharing would have ended them has been treated unfairly.
    """

    def __init__(self) -> None:
        self._images = Counter[Party]()
        self._each: dict[Party, float] = {}

    def enter(self, party: Party) -> float:
        """An image of this party is there from now on; returns where its party's clock stands."""
        self._images[party] += 1
        return self._each.setdefault(party, 0.0)

    def leave(self, party: Party) -> None:
        """An image of this party is gone."""
        self._images[party] -= 1
        if not self._images[party]:
            del self._images[party]
            del self._each[party]

    def advance(self, seconds: float) -> None:
        """So much of the device's time went by, whoever used it."""
        users = Counter(owner for owner, _ in self._images)
        for party, images in self._images.items():
            self._each[party] += seconds / len(users) / users[party[0]] / images

    def received(self, party: Party, since: float) -> float:
        """Seconds an image would have had of the device since its party's clock stood there."""
        return self._each.get(party, since) - since

    def copy(self) -> "FairClock":
        """Another clock that stands where this one does."""
        other = FairClock()
        other._images = self._images.copy()
        other._each = self._each.copy()
        return other
