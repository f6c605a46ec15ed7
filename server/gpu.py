"""The threads that work for the event loop: one owns every tensor, one reads models' files."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class WorkerThread:
    """Runs functions one after the other, in the order asked, on a thread of its own.

    One thread does all computing, on a CPU too: each thread that computes gets OpenMP workers of its own, and once
    there are more of them than cores, libgomp lets them sleep at every barrier. Each picture took twice as long then.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function on this thread; the event loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Wait for the work under way and end the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)
