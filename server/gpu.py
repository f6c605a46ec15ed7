"""The threads beside the event loop's: the one that owns every tensor, and the one that reads models for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Work:
    """What runs on a thread now: since when, or when it last got on (by the monotonic clock), and how many seconds it
    may take from there."""

    began: float
    patience: float


class WorkerThread:
    """Runs functions one after the other, in the order asked, on a thread of its own.

    One of them, "gpu", does all computing, on a CPU too: two that do take each other's cores (see `pipelines.reading`).
    The other, "loader", reads models from the disk, so that nobody's steps wait for it.

    Attributes:
        present: what runs now, None between two pieces of work. The thread writes it and the event loop reads it.
    """

    def __init__(self, name: str) -> None:
        self.present: Work | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._waiting = set[asyncio.Future[Any]]()
        self._given_up: Exception | None = None

    def heartbeat(self) -> None:
        """For the work that runs now, on this thread itself: it gets on, so its patience begins anew."""
        if self.present is not None:
            self.present = Work(monotonic(), self.present.patience)

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function on this thread, however long it takes; the event loop goes on meanwhile."""
        return await self.within(inf, function, *args, **kwargs)

    async def within(self, patience: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that takes so many seconds at most, the wait for its turn left out; after them it hangs.

        Raises what `give_up` was given, where the thread was given up.
        """
        if self._given_up is not None:
            raise self._given_up
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._executor, lambda: self._run(patience, lambda: function(*args, **kwargs)))
        self._waiting.add(work)
        work.add_done_callback(self._waiting.discard)
        try:
            return await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._given_up is None or (task is not None and task.cancelling()):
                raise
            raise self._given_up from None

    def give_up(self, reason: Exception) -> None:
        """Abandon the thread, whose work hangs: whoever waits for it, or comes to, is raised the reason instead."""
        self._given_up = reason
        self._executor.shutdown(wait=False, cancel_futures=True)
        for work in list(self._waiting):
            work.cancel()

    def close(self) -> None:
        """Wait for the work under way, unless it was given up, and end the thread."""
        self._executor.shutdown(wait=self._given_up is None, cancel_futures=True)

    def _run(self, patience: float, function: Callable[[], T]) -> T:
        self.present = Work(monotonic(), patience)
        try:
            return function()
        finally:
            self.present = None
