"""What came of a job, as those hear it who count jobs (`server/metrics.py`) or trace them (`server/tracing.py`)."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from server.answers import explain, public
from server.disconnect import ClientGone
from server.jobs.orders import Order
from server.scheduling.queue import Ticket

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageEnd:
    """What came of one image of a job.

    Attributes:
        index: its place in the order.
        error: the code of why there is none; nothing where its files are on disk.
        settled: when it was kept or had failed, by the monotonic clock.
    """

    index: int
    ticket: Ticket
    error: str | None = None
    settled: float = field(default_factory=monotonic)


@dataclass(frozen=True)
class JobEnd:
    """What came of a job.

    Attributes:
        order: what was wanted.
        id: its row's; None where it came to none.
        began: when it was accepted, by the monotonic clock, as is `ended`.
        images: as they settled; none where the job ended before they were in line.
        kept: how many of them are recorded.
        weights: the hash of those that made them, as far as it is known.
        error: of a job without any picture, why.
    """

    order: Order
    id: str | None
    began: float
    images: Sequence[ImageEnd]
    kept: int
    weights: str | None = None
    error: BaseException | None = None
    ended: float = field(default_factory=monotonic)

    @property
    def end(self) -> str:
        """How it ended: in full, in part, by its client, or the code of the error that its client was told."""
        if self.error is not None:
            return error_code(self.error, self.order)
        return "completed" if self.kept == len(self.order.requests) else "partly_failed"


Listener = Callable[[JobEnd], None]


def tell(listeners: Sequence[Listener], end: JobEnd) -> None:
    """Tell everybody who wants to hear of a job's end; one of them that fails keeps nobody else from it."""
    for listener in listeners:
        try:
            listener(end)
        except Exception:
            log.exception("who is told of each job failed at job %s", end.id)


def error_code(error: BaseException, order: Order) -> str:
    """The code of an error as the client of an order hears it; "cancelled" where it was the client's doing."""
    if isinstance(error, ClientGone | asyncio.CancelledError):
        return "cancelled"
    return explain(public(error, order.entry.name))[0].code
