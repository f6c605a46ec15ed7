"""One image's ticket from submission to picture, and the bounded queue that gives tickets out."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import Any

from PIL.Image import Image

from pipelines.catalog import ModelEntry
from pipelines.request import BatchKey, ImageRequest, TokenCount


class QueueFull(Exception):
    """As many images wait or run as the server allows; come back after `retry_after` seconds."""

    def __init__(self, limit: int, retry_after: int) -> None:
        super().__init__(f"The queue is full ({limit} images). Try again in {retry_after} seconds.")
        self.retry_after = retry_after


class Stage(StrEnum):
    """Where an image stands. Ended or not is the future's to know, not the stage's."""

    WAITING = "waiting"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"


@dataclass(frozen=True)
class Picture:
    """A finished image: its pixels, how long it took from its first work to its last, and what its text came to."""

    image: Image
    seconds: float
    prompt: TokenCount
    negative_prompt: TokenCount


@dataclass(eq=False)
class Ticket:
    """One image that somebody waits for.

    Awaiting `future` gives the picture or raises why there is none; cancelling it frees the image's rows by the
    next step. `watch` is called on the event loop after each step and at the end.
    """

    entry: ModelEntry
    request: ImageRequest
    priority: int
    order: int
    future: asyncio.Future[Picture]
    watch: Callable[["Ticket"], None]
    stage: Stage = Stage.WAITING
    submitted: float = field(default_factory=monotonic)
    started: float | None = None
    denoising: Any = None

    @property
    def key(self) -> BatchKey:
        return BatchKey.of(self.entry, self.request, self.order)

    @property
    def rows(self) -> int:
        """Of its next forward pass: an image may end its guidance before its last step."""
        return self.request.rows if self.denoising is None else int(self.denoising.rows)

    @property
    def live(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.future.done()

    @property
    def step(self) -> int:
        """Steps done, 0..request.steps."""
        return 0 if self.denoising is None else int(self.denoising.step)

    @property
    def evaluations_left(self) -> int:
        """Forward passes still to come; before the sampler is built, the number of steps."""
        if self.denoising is None:
            return self.request.steps
        return int(self.denoising.evaluations - self.denoising.evaluation)

    def fail(self, error: BaseException) -> None:
        if self.live:
            self.future.set_exception(error)
