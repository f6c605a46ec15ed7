"""Previews of images in the making: drawn when somebody looks, within a share of the device's time."""

import asyncio
from dataclasses import dataclass
from functools import partial
from time import monotonic
from weakref import WeakKeyDictionary

from PIL.Image import Image

from server.scheduling.queue import Stage, Ticket
from server.scheduling.verbs import ODD_SECONDS, Visits

MOST_SHARE = 0.03
"""Of the device's time, whoever looks and however often: everybody else's steps pay for it."""


FRESH_SECONDS = 0.25
"""So long a drawing serves everybody who looks."""


@dataclass(frozen=True)
class _Drawn:
    """A preview, after which step and when it was drawn."""

    step: int
    at: float
    image: Image

    @property
    def fresh(self) -> bool:
        return monotonic() - self.at < FRESH_SECONDS


class Previews:
    """Draws one preview at a time, and remembers the last of each image. Used on the event loop alone."""

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self._drawn: WeakKeyDictionary[Ticket, _Drawn] = WeakKeyDictionary()
        self._turn = asyncio.Lock()
        self._allowed = 0.0

    async def of(self, ticket: Ticket) -> Image | None:
        """What an image looks like by now; None while nothing of it is to be seen, and once it is done.

        Raises:
            PipelineError: it cannot be told.
        """
        async with self._turn:
            drawn = self._drawn.get(ticket)
            waits = monotonic() < self._allowed  # the device's time for previews is spent for now
            if drawn is not None and ticket.live and (drawn.step == ticket.step or drawn.fresh or waits):
                return drawn.image
            if waits or not ticket.live or ticket.stage not in (Stage.DENOISING, Stage.DECODING):
                return None
            step, work = ticket.step, partial(self._visits.engine.preview, ticket.entry, [ticket.denoising])
            (outcome,), seconds = await self._visits(work, ODD_SECONDS)
            self._allowed = monotonic() + seconds * (1 / MOST_SHARE - 1)
            if isinstance(outcome, Exception):
                raise outcome
            self._drawn[ticket] = _Drawn(step, monotonic(), outcome)
            return self._drawn[ticket].image
