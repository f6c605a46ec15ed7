"""What can be told of the future: backlog, Retry-After, and when each image will be done."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from math import ceil

from pipelines.catalog import ModelEntry
from pipelines.request import BatchKey, ImageRequest
from server.scheduling.books import Books
from server.scheduling.forecast import MOST_LOOKS, Plan, forecast
from server.scheduling.policy import Caps
from server.scheduling.queue import QueueFull, Ticket, evaluations_of

MAX_RETRY_AFTER = 120
"""Seconds; OpenAI's clients do not heed a longer Retry-After."""


class Outlook:
    """Forecasts over the images there are, and the bound on how much may be accepted.

    Args:
        absent: the seconds until a model will be on the device, 0 for one that is.
        queue_limit: the most images that may wait or run.
        queue_seconds: the most work, in seconds of the device, that may wait or run. An idle server takes any request.
    """

    def __init__(
        self, books: Books, caps: Caps, absent: Callable[[str], float], *, queue_limit: int, queue_seconds: float
    ) -> None:
        self._cost = books.cost
        self._clock = books.clock
        self._caps = caps
        self._absent = absent
        self._queue_limit = queue_limit
        self._queue_seconds = queue_seconds
        # Of requests that are accepted and whose images are not in line yet.
        self._reserved_images, self._reserved_seconds = 0, 0.0

    def backlog(self, tickets: Sequence[Ticket]) -> float:
        """Seconds that the device needs for all of these, in full batches."""
        return sum(self._seconds(ticket.key, ticket.rows, ticket.evaluations_left) for ticket in tickets)

    def work(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> float:
        """The same for images that are asked for."""
        return sum(
            self._seconds(BatchKey.of(entry, request), request.rows, evaluations_of(entry, request))
            for request in requests
        )

    def retry_after(self, tickets: Sequence[Ticket]) -> int:
        """Whole seconds until about half of the work is done, 1 to MAX_RETRY_AFTER."""
        return max(1, min(MAX_RETRY_AFTER, ceil(self.backlog(tickets) / 2)))

    @contextmanager
    def reserve(self, tickets: Sequence[Ticket], images: int, seconds: float) -> Iterator[None]:
        """Keep room for so many more images, of so much work, until they are in line.

        Raises:
            QueueFull: there is none. An idle server takes any request.
        """
        self._check_room(tickets, images, seconds)
        self._reserved_images += images
        self._reserved_seconds += seconds
        try:
            yield
        finally:
            self._reserved_images -= images
            self._reserved_seconds -= seconds

    def _check_room(self, tickets: Sequence[Ticket], images: int, seconds: float) -> None:
        if not tickets and not self._reserved_images:
            return  # or a request that is larger than the bound could never be carried out
        if len(tickets) + images + self._reserved_images > self._queue_limit:
            raise QueueFull(f"{self._queue_limit} images", self.retry_after(tickets))
        if self.backlog(tickets) + self._reserved_seconds + seconds > self._queue_seconds:
            raise QueueFull(f"{self._queue_seconds:g} seconds of work", self.retry_after(tickets))

    def end_of(self, some: Collection[Ticket], tickets: Sequence[Ticket]) -> float:
        """Seconds from now until the last of some images is done, as if nobody else came."""
        plans = [ticket.plan for ticket in tickets]
        orders = {ticket.order for ticket in some}
        forecast(plans, self._clock, self._cost, self._caps, until=orders)
        return max((self._end(plan) for plan in plans if plan.order in orders), default=0.0)

    def ends(self, tickets: Sequence[Ticket], most_looks: int = MOST_LOOKS) -> list[float]:
        """The same for all of them."""
        plans: list[Plan] = [ticket.plan for ticket in tickets]
        forecast(plans, self._clock, self._cost, self._caps, most_looks=most_looks)
        return [self._end(plan) for plan in plans]

    def _end(self, plan: Plan) -> float:
        """Others go on while a model comes, so its images lose only what they would have been begun earlier."""
        absent = self._absent(plan.key.model)
        return max(plan.done or 0.0, absent + plan.solo if absent else 0.0)

    def _seconds(self, key: BatchKey, rows: int, evaluations: int) -> float:
        """Nothing of a model that was never measured: nobody is turned away on a guess, while the first one loads."""
        return self._cost.share_seconds(key, rows, evaluations, self._caps(key)) if self._cost.knows(key.model) else 0.0
