"""Tracing: whether the environment asks for it, and that it costs no job anything, whatever the collector does."""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING

from server.endings import Listener

if TYPE_CHECKING:
    from server.spans import Spans

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""The variables that name a collector, by the specification of OpenTelemetry."""

FLUSH_SECONDS = 1.0
"""How long a stop waits for the collector to take the last spans: with FAREWELL_SECONDS of
`connections.py` below the 10 s that containers are given."""

REPEAT_SECONDS = 600.0
"""After how long the log repeats a complaint about the collector, which may be down for days."""


@asynccontextmanager
async def tracing() -> AsyncIterator[Listener]:
    """Who hears of each job's end and tells the collector that the environment names, if it names one."""
    _quieten()
    spans = _spans()
    if spans is None:
        yield lambda job: None
        return
    try:
        yield spans.job_ended
    finally:
        await _close(spans)


def _spans() -> "Spans | None":
    """None where nobody asks for traces, or where they cannot be had, which is no reason not to make pictures."""
    variable = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if variable is None or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    try:
        from server.spans import Spans
    except Exception as error:  # protobuf's versions that do not fit each other are no ImportError
        remedy = "install them with pip install 'darkroom[otel]', or unset it"
        log.warning("nothing is traced: %s is set, but what sends traces is not here (%s); %s", variable, error, remedy)
        return None
    try:
        return Spans()
    except Exception as error:
        log.warning("nothing is traced: the OTEL_* variables cannot be used: %s", error)
        return None


async def _close(spans: "Spans") -> None:
    """Send what is left. The thread is a daemon, for one that waits for a collector must not keep the process."""
    sending = Thread(target=spans.close, name="traces", daemon=True)
    sending.start()
    await asyncio.to_thread(sending.join, FLUSH_SECONDS)
    if sending.is_alive():
        log.warning("the last traces are lost: the collector did not take them within %g s", FLUSH_SECONDS)


def _quieten() -> None:
    """Have OpenTelemetry's own log lines pass through a `_Seldom`, one for all servers of a process."""
    theirs = logging.getLogger("opentelemetry")
    for former in [handler for handler in theirs.handlers if isinstance(handler, _Seldom)]:
        theirs.removeHandler(former)
    theirs.addHandler(_Seldom())
    theirs.propagate = False


class _Seldom(logging.Handler):
    """Passes each of a library's log lines on once in REPEAT_SECONDS; it may be called on any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        line, now = re.sub(r"\d+", "0", record.getMessage()), monotonic()
        if now - self._told.get(line, -inf) >= REPEAT_SECONDS:
            self._told[line] = now
            log.log(record.levelno, "%s", record.getMessage(), exc_info=record.exc_info)
