"""What ran, written down once: for the cost model, for the fair clock, and for whoever measures the server."""

from typing import Protocol

from pipelines.profile import Profile
from pipelines.request import BatchKey
from server.scheduling.cost import CostModel
from server.scheduling.fairness import FairClock
from server.scheduling.meter import Meter


class Sized(Protocol):
    """An image of which it is known what it comes to."""

    @property
    def key(self) -> BatchKey: ...
    @property
    def rows(self) -> int: ...
    @property
    def evaluations_left(self) -> int: ...


class Books:
    """Three readers of the same facts. All durations are seconds on the GPU thread."""

    def __init__(self, meter: Meter) -> None:
        self.cost = CostModel()
        self.clock = FairClock()
        self.meter = meter

    def solo_seconds(self, image: Sized) -> float:
        """How long the device needs for an image that has it to itself, from its beginning."""
        return self.cost.solo_seconds(image.key, image.rows, image.evaluations_left)

    def measured(self, identity: str, profile: Profile) -> None:
        """A model's costs were measured."""
        self.cost.adopt(identity, profile)

    def encoded(self, key: BatchKey, images: int, seconds: float) -> None:
        """Some images of one model were begun."""
        self.cost.observe_encode(key.model, images, seconds)
        self.clock.advance(seconds)
        self.meter.encoded(key, images, seconds)

    def stepped(self, key: BatchKey, images: int, rows: int, seconds: float, *, usual: bool = True) -> None:
        """A forward pass and the samplers' steps after it. One that went another way than usual teaches no cost."""
        if usual and key.lone is None:
            self.cost.observe_step(key, rows, seconds)
        self.clock.advance(seconds)
        self.meter.stepped(key, images, rows, seconds, self.cost.flops(key, rows))

    def decoded(self, key: BatchKey, images: int, seconds: float) -> None:
        """Some images became pictures."""
        self.cost.observe_decode(key, images, seconds)
        self.clock.advance(seconds)
        self.meter.decoded(key, images, seconds)
