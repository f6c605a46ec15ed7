"""What the last minute was like: sums over a window that moves along."""

from collections import deque
from collections.abc import Callable
from time import monotonic

WINDOW_SECONDS = 60.0
"""Long enough for several pictures of a busy device, short enough to be "now"."""


class Recent:
    """Amounts of the last WINDOW_SECONDS, each counted when it came.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._amounts: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def add(self, amount: float) -> None:
        """Something came now."""
        self._forget()
        self._amounts.append((self._clock(), amount))
        self._sum += amount

    @property
    def mean(self) -> float | None:
        """Of the amounts; None where none came."""
        self._forget()
        return self._sum / len(self._amounts) if self._amounts else None

    @property
    def per_second(self) -> float:
        """The sum over the window, or over the time since the beginning while that is shorter."""
        self._forget()
        return self._sum / max(1.0, min(WINDOW_SECONDS, self._clock() - self._began))

    def _forget(self) -> None:
        since = self._clock() - WINDOW_SECONDS
        while self._amounts and self._amounts[0][0] < since:
            self._sum -= self._amounts.popleft()[1]
        if not self._amounts:
            self._sum = 0.0  # and so no rounding is ever carried along for long
