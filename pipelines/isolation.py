"""Work on a batch that may fail: memory is found for it, or it is halved, until a failure belongs to one item."""

import logging
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, TypeVar

import torch

from pipelines.device import is_out_of_memory, raise_if_lost
from pipelines.errors import ImageFailed, PipelineError
from pipelines.residency import free_memory

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Lack(Enum):
    MEMORY = "memory"
    """In place of the error, which would keep the failed forward's tensors alive."""


class Isolation:
    """How one visit to the device copes with failure.

    Args:
        device: where the work computes.
        room: frees some memory each time it is advanced, for as long as there is any to be had without halving.
        too_large: what is said of an item that does not fit even alone.

    Attributes:
        fitted: the batches that ran.
        halved: the batches that lacked memory although all was freed that could be.
    """

    def __init__(self, device: torch.device, room: Iterator[None], too_large: Callable[[Any], PipelineError]) -> None:
        self.fitted: list[Sequence[Any]] = []
        self.halved: list[Sequence[Any]] = []
        self._device = device
        self._room = room
        self._too_large = too_large

    def run(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result | Exception]]
    ) -> list[Result | Exception]:
        """Do work on a batch; in each place its result, or why there is none.

        `work` must leave its items as they were when it raises, so that it can simply be done again.

        Raises:
            DeviceLost: nothing can be computed any more.
        """
        outcome = self._attempt(items, work)
        while outcome is _Lack.MEMORY and self._more_room():
            outcome = self._attempt(items, work)
        if isinstance(outcome, list):
            self.fitted.append(items)
            return outcome
        if outcome is _Lack.MEMORY:
            free_memory(self._device)
            self.halved.append(items)
        if len(items) > 1:
            half = len(items) // 2
            return self.run(items[:half], work) + self.run(items[half:], work)
        return [outcome if isinstance(outcome, Exception) else self._too_large(items[0])]

    def _more_room(self) -> bool:
        return next(self._room, self) is None  # a generator at its end gives the default

    def _attempt(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result | Exception]]
    ) -> list[Result | Exception] | Exception | _Lack:
        try:
            return list(work(items))
        except Exception as error:
            if is_out_of_memory(error):
                return _Lack.MEMORY
            raise_if_lost(error, self._device)
            return _as_image_failure(error)


def _as_image_failure(error: Exception) -> Exception:
    """What a client is told. The frames go to the log: kept on the error, they would keep tensors alive."""
    if isinstance(error, PipelineError):
        return error.with_traceback(None)
    log.error("an image failed", exc_info=error)
    return ImageFailed(f"the picture failed while it was computed ({type(error).__name__}: {str(error)[:300]})")
