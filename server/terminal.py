"""A terminal taken over for a while, one look a second drawn on it, and given back as it was."""

import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from server.remote import Remote, Unreachable
from server.top import RED, Look, Style, frame

PERIOD_SECONDS = 1.0

_OPEN = "\x1b[?1049h\x1b[?25l"
_CLOSE = "\x1b[?25h\x1b[?1049l"
"""The other screen and no cursor, and back: what stood on the screen before is there again afterwards."""


def style_of_output() -> Style:
    """What standard output can show. NO_COLOR, whatever it holds unless empty, means none (no-color.org)."""
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Style(color, (sys.stdout.encoding or "").lower().startswith("utf"))


def print_once(server: Remote) -> None:
    """One frame, for scripts and for output that is no terminal.

    Raises:
        Unreachable
    """
    print(*frame(Look.at(server), style_of_output(), shutil.get_terminal_size().columns), sep="\n")


def watch(server: Remote) -> None:
    """Draw frames until q or Ctrl-C. A server that goes away is waited for.

    Raises:
        Unreachable: it is not there in the first place.
    """
    look, style = Look.at(server), style_of_output()
    with suppress(KeyboardInterrupt), _taken_over():
        fault = ""
        while True:
            _draw(look, style, fault)
            if _key(PERIOD_SECONDS) in ("q", "Q"):
                return
            try:
                look, fault = Look.at(server), ""
            except Unreachable as error:
                fault = str(error)


def _draw(look: Look, style: Style, fault: str) -> None:
    """Line over line, each cleared behind its end: nothing flickers."""
    width, height = shutil.get_terminal_size()
    foot = style.paint(style.spell(fault)[:width], RED) if fault else "q leaves"
    lines = [*frame(look, style, width, max(1, height - 1)), foot]
    sys.stdout.write("\x1b[H" + "\x1b[K\n".join(lines) + "\x1b[K\x1b[J")
    sys.stdout.flush()


def _key(seconds: float) -> str:
    """The key that is pressed within so many seconds, or none."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return os.read(sys.stdin.fileno(), 1).decode("ascii", "replace") if ready else ""


@contextmanager
def _taken_over() -> Iterator[None]:
    """Keys come unechoed and at once; whatever ends the block, Ctrl-C and SIGTERM too, the terminal is as before."""
    before = termios.tcgetattr(sys.stdin)
    handlers = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, _leave),
        signal.SIGTSTP: signal.signal(signal.SIGTSTP, signal.SIG_IGN),  # a shell would find the wrong screen
    }
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(_OPEN)
        yield
    finally:
        sys.stdout.write(_CLOSE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(number: int, _: Any) -> None:
    sys.exit(128 + number)
