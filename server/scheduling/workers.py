"""What turns a worker of the scheduler: it takes turns while there is something to do, then sleeps until woken."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress


class Worker:
    """One kind of work, one turn at a time. Used on the event loop alone.

    Args:
        turn: does one piece of work, and says whether there may be another.
        every: seconds after which it looks by itself, for what only time brings about.
    """

    def __init__(self, turn: Callable[[], Awaitable[bool]], every: float | None = None) -> None:
        self._turn = turn
        self._every = every
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._sleep()
            self._woken.clear()
            while await self._turn():
                pass

    async def _sleep(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._every):
                await self._woken.wait()
