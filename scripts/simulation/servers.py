"""The simulated servers: the real choice of each step over the real cost model, and what it is held against.

Every image counts as begun, all are of one model that is there, and steps take exactly what the cost model says: what
`policy.admit`, swaps of models and the learning of costs do is not simulated.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf

from pipelines.profile import Profile
from pipelines.request import BatchKey
from server.scheduling.cost import CostModel
from server.scheduling.fairness import FairClock
from server.scheduling.forecast import Plan, forecast
from server.scheduling.policy import ride

from .traces import Request, Wish

MODEL = "model@simulated"
WINDOW_SECONDS, WINDOW_IMAGES = 0.5, 4
RETRIES = 2
"""How often OpenAI's clients come back by themselves after a 503."""


@dataclass(eq=False, kw_only=True)
class Image(Plan):
    """A request in the simulation.

    `at` is when it was accepted, `promised` the seconds it was then told, `had` its shares of the device at its end.
    """

    wish: Wish
    at: float
    tries: int = 0
    promised: float | None = None
    had: float = 0.0

    @property
    def latency(self) -> float:
        assert self.done is not None
        return self.done - self.at

    @property
    def slowdown(self) -> float:
        return self.latency / self.solo


Choice = Callable[[Sequence[Image], CostModel, int], list[Image]]
"""From the images that are there, a cost model and the most rows, the next step's batch."""


def darkroom(images: Sequence[Image], cost: CostModel, most: int) -> list[Image]:
    """The server's own policy."""
    return ride(images, cost, lambda key: most, len(images))


def fifo(images: Sequence[Image], cost: CostModel, most: int) -> list[Image]:
    """Step batching, first come first served: the eldest image and those like it."""
    return _filled([image for image in images if image.key == images[0].key], most)


class RoundRobin:
    """Step batching in which the shapes take turns."""

    def __init__(self) -> None:
        self._turns = Counter[BatchKey]()

    def __call__(self, images: Sequence[Image], cost: CostModel, most: int) -> list[Image]:
        keys = dict.fromkeys(image.key for image in images)
        latest = max(self._turns.values(), default=0)
        turn = min(keys, key=lambda key: self._turns[key])
        self._turns[turn] = latest + 1
        return _filled([image for image in images if image.key == turn], most)


def _filled(images: Sequence[Image], most: int) -> list[Image]:
    chosen: list[Image] = []
    for image in images:
        if not chosen or sum(other.rows for other in chosen) + image.rows <= most:
            chosen.append(image)
    return chosen


class Server:
    """One device and what it is to do.

    Args:
        profile: of the device; the cost model knows it as it is.
        most: rows of a forward pass.
        queue_seconds: of work in line beyond which a request is told to come back.
        forecasts: whether each image is told its end when it is accepted.
    """

    def __init__(self, profile: Profile, most: int, queue_seconds: float = inf, forecasts: bool = False) -> None:
        self.cost = CostModel()
        self.cost.adopt(MODEL, profile)
        self.clock = FairClock()
        self.refused = 0
        self._most = most
        self._queue_seconds = queue_seconds
        self._forecasts = forecasts
        self._now = 0.0
        self._images: list[Image] = []

    def image(self, request: Request, order: int) -> Image:
        """A request as this server sees it."""
        wish = request.wish
        key = BatchKey(MODEL, wish.side, wish.side)
        solo = self.cost.solo_seconds(key, wish.rows, wish.steps)
        return Image(
            key=key,
            rows=wish.rows,
            priority=wish.priority,
            order=order,
            evaluations_left=wish.steps,
            tenant=(wish.owner, ""),
            entered=0.0,
            solo=solo,
            clock=self.clock,
            wish=wish,
            at=request.at,
        )

    def batched(self, trace: Sequence[Request], choose: Choice) -> list[Image]:
        """Play a trace one denoising step at a time; the images, those refused for good without an end."""
        everybody = [self.image(request, order) for order, request in enumerate(trace)]
        coming = [(image.at, image.order, image) for image in everybody]
        heapify(coming)
        while coming or self._images:
            if not self._images:
                self._now = max(self._now, coming[0][0])
            while coming and coming[0][0] <= self._now:
                self._accept(heappop(coming)[2], coming)
            if self._images:
                self._step(choose(self._images, self.cost, self._most))
        return everybody

    def _accept(self, image: Image, coming: list[tuple[float, int, Image]]) -> None:
        backlog = sum(self._share(other) for other in self._images)
        if self._images and backlog + self._share(image) > self._queue_seconds:
            image.tries += 1
            self.refused += 1
            if image.tries <= RETRIES:
                image.at = self._now + max(1.0, min(120.0, backlog / 2))
                heappush(coming, (image.at, image.order, image))
            return
        image.entered = self.clock.enter(image.tenant)
        self._images.append(image)
        if self._forecasts:
            forecast(self._images, self.clock, self.cost, lambda key: self._most, until={image.order})
            image.promised, image.done = image.done, None

    def _share(self, image: Image) -> float:
        return self.cost.share_seconds(image.key, image.rows, image.evaluations_left, self._most)

    def _step(self, batch: Sequence[Image]) -> None:
        began = self._now
        self._now += sum(self.cost.encode_seconds(MODEL) for image in batch if not image.begun)
        self._now += self.cost.step_seconds(batch[0].key, sum(image.rows for image in batch))
        for image in batch:
            image.begun = True
            image.evaluations_left -= 1
        finished = [image for image in batch if not image.evaluations_left]
        self._now += sum(self.cost.decode_seconds(image.key) for image in finished)
        self.clock.advance(self._now - began)
        for image in finished:
            image.done, image.had = self._now, image.shares
            self._images.remove(image)
            self.clock.leave(image.tenant)

    def lock(self, trace: Sequence[Request]) -> list[Image]:
        """One pipeline behind a lock, first come first served: what people write today."""
        now = 0.0
        images = [self.image(request, order) for order, request in enumerate(trace)]
        for image in images:
            now = max(now, image.at) + image.solo
            image.done = now
        return images

    def window(self, trace: Sequence[Request]) -> list[Image]:
        """One pipeline call for up to four alike, collected for half a second from the eldest of them."""
        images = [self.image(request, order) for order, request in enumerate(trace)]
        waiting = deque(images)
        now = 0.0
        while waiting:
            first = waiting[0]
            until = max(now, first.at + WINDOW_SECONDS)
            alike = [image for image in waiting if image.wish == first.wish and image.at <= until][:WINDOW_IMAGES]
            full = len(alike) == WINDOW_IMAGES
            now = max(now, alike[-1].at) if full else until
            rows = sum(image.rows for image in alike)
            now += sum(map(self._around, alike)) + first.wish.steps * self.cost.step_seconds(first.key, rows)
            for image in alike:
                image.done = now
                waiting.remove(image)
        return images

    def _around(self, image: Image) -> float:
        """What comes before and after an image's steps."""
        return self.cost.encode_seconds(MODEL) + self.cost.decode_seconds(image.key)
