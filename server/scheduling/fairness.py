"""Who has had their share: the time each image would have had of a device shared equally. Pure: no clock of its own."""

from collections import Counter

MOST_SHARES = 3.0
"""An image that equal sharing would have finished this many times over goes before all others of its class."""


Tenant = tuple[str, str]
"""An owner, and whom of its users it asks for; the latter may be nobody."""


class FairClock:
    """Processor sharing, reckoned.

    Owners share the device equally, the users that an owner names share its part, and each user's images share theirs.

    It is the yardstick of fair queueing (Demers, Keshav and Shenker, 1989, doi:10.1145/75247.75248): nobody computes
    in such small slices, but whoever ends long after equal sharing would have ended them has been treated unfairly.
    """

    def __init__(self) -> None:
        self._images = Counter[Tenant]()
        self._each: dict[Tenant, float] = {}

    def enter(self, tenant: Tenant) -> float:
        """An image of this tenant is there from now on; returns where its tenant's clock stands."""
        self._images[tenant] += 1
        return self._each.setdefault(tenant, 0.0)

    def leave(self, tenant: Tenant) -> None:
        """An image of this tenant is gone."""
        self._images[tenant] -= 1
        if not self._images[tenant]:
            del self._images[tenant]
            del self._each[tenant]

    def advance(self, seconds: float) -> None:
        """So much of the device's time went by, whoever used it."""
        users = Counter(owner for owner, _ in self._images)
        for tenant, images in self._images.items():
            self._each[tenant] += seconds / len(users) / users[tenant[0]] / images

    def received(self, tenant: Tenant, since: float) -> float:
        """Seconds an image would have had of the device since its tenant's clock stood there."""
        return self._each.get(tenant, since) - since

    def copy(self) -> "FairClock":
        """Another clock that stands where this one does."""
        other = FairClock()
        other._images = self._images.copy()
        other._each = self._each.copy()
        return other
