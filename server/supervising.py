"""A supervisor for places that have none: it starts the server anew when its engine was lost or it crashed."""

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from time import monotonic, sleep
from types import FrameType

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a new start; each that comes soon after the last waits twice as long."""

SOUND_SECONDS = 300.0
"""A server that ran for so long was well: what comes then is not the same trouble again."""

FINAL = (0, 1, 2)
"""Exit codes after which a new start would come to the same end: told to stop, wrong settings, wrong arguments."""


class Supervisor:
    """Runs a command until it ends for good. Signals that ask for an end are passed on.

    Args:
        command: the server's.
        first_pause: see FIRST_PAUSE.
    """

    def __init__(self, command: Sequence[str], first_pause: float = FIRST_PAUSE) -> None:
        self._command = command
        self._first_pause = first_pause
        self._child: subprocess.Popen[bytes] | None = None
        self._told: int | None = None

    def run(self) -> int:
        """The exit code of the last run."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        pause = self._first_pause
        while True:
            began = monotonic()
            self._child = subprocess.Popen(self._command)
            if self._told is not None:  # it came while there was no child
                self._child.send_signal(self._told)
            code = self._child.wait()
            if code in FINAL or self._told is not None:
                return code
            if monotonic() - began > SOUND_SECONDS:
                pause = self._first_pause
            log.warning("the server ended with %s; it starts anew in %g s", _words(code), pause)
            sleep(pause)
            if self._told is not None:
                return code
            pause = min(LONGEST_PAUSE, 2 * pause)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._told = number
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


def command_of(arguments: Sequence[str]) -> list[str]:
    """The command that serves with these arguments, in this Python."""
    return [sys.executable, "-m", "server", "serve", *arguments]


def _words(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
