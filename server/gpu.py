"""The two threads beside the event loop's: the one that owns every tensor, and the one that reads models for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class OwnThread:
    """Runs functions one after the other, in the order asked, on a thread of its own: `await thread(function, ...)`."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function on the thread; the event loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Wait for the work under way and end the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class GpuThread(OwnThread):
    """The one thread that computes, on a CPU too: two that do take each other's cores (see `pipelines.reading`)."""

    def __init__(self) -> None:
        super().__init__("gpu")


class LoaderThread(OwnThread):
    """Reads models from the disk, so that nobody's steps wait for it; one at a time, since the disk is one."""

    def __init__(self) -> None:
        super().__init__("loader")
