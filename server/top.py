"""What `darkroom top` shows: one look at a running server, drawn as the lines of a frame."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from server.remote import Remote

_ASCII = str.maketrans("█░·…–", "#-|~-")


@dataclass(frozen=True)
class Look:
    """One server at one moment, as GET /api/v1/queue and /api/v1/capabilities tell of it."""

    url: str
    queue: dict[str, Any]
    capabilities: dict[str, Any]

    @classmethod
    def at(cls, server: Remote) -> "Look":
        """Ask a server.

        Raises:
            Unreachable: saying what to do.
        """
        return cls(server.url, server.ask("/api/v1/queue?limit=100"), server.ask("/api/v1/capabilities"))


@dataclass(frozen=True)
class Style:
    """What a terminal can show: colours, and characters beyond ASCII."""

    color: bool
    unicode: bool

    def paint(self, text: str, code: str) -> str:
        """Text in a colour: a number of ECMA-48's "select graphic rendition"."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and text else text

    def spell(self, line: str) -> str:
        return line if self.unicode else line.translate(_ASCII).encode("ascii", "replace").decode()


BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "31", "32", "33", "36"
_STATES = {"resident": GREEN, "parked": CYAN, "loading": YELLOW, "broken": RED, "absent": DIM}


def frame(look: Look, style: Style, width: int, height: int | None = None) -> list[str]:
    """The lines of one frame, at most `width` columns wide and, if that is given, `height` lines high."""
    head = [*_head(look, style, width), "", *_models(look, style, width), "", *_rates(look, style, width), ""]
    images = look.queue["images"]
    lines = [_image(image, style, width) for image in images]
    total = look.queue["queueLength"] + look.queue["processingCount"]
    room = len(lines) if height is None else max(0, height - len(head) - 1)
    if total > min(room, len(lines)):
        lines = lines[: max(0, room - 1)]
        lines.append(style.paint(f"  … and {total - len(lines)} more", DIM))
    if not total:
        lines = [style.paint("  nothing to do", DIM)]
    return [style.spell(line) for line in [*head, *lines][:height]]


def _head(look: Look, style: Style, width: int) -> Iterator[str]:
    device = look.capabilities["device"]
    where = f"{device['name']} · {device['kind']} · {device['dtype']}"
    name = f"darkroom {look.capabilities['version']}"
    left = max(0, width - len(name) - 2)
    yield f"{style.paint(name, BOLD)}  {_fit(look.url, left).rstrip()}"
    yield _fit(f"device  {where}", width).rstrip()
    used, whole = device["memoryUsedBytes"], device["memoryBytes"]
    if used is not None and whole:
        share = used / whole
        bar = style.paint(_bar(share, 20), RED if share > 0.95 else GREEN)
        yield f"memory  {bar} {_bytes(used)} of {_bytes(whole)}"
    elif used is not None:
        yield f"memory  {_bytes(used)} used by the server"


def _models(look: Look, style: Style, width: int) -> Iterator[str]:
    models = look.capabilities["models"]
    names = min(30, max((len(model["name"]) for model in models), default=0) + 1)
    for model in models:
        name = _fit(model["name"] + ("*" if model["default"] else ""), names)
        rest = max(0, width - names - 13)
        state = style.paint(_fit(model["state"], 9), _STATES.get(model["state"], DIM))
        yield f"  {name} {state} {_cost(model, rest)}".rstrip()


def _cost(model: dict[str, Any], width: int) -> str:
    """How far a model's way here is, or what its weights take and a step of its shapes costs."""
    loading = model["loading"]
    if loading is not None:
        text = f"{_bar(loading['share'], 10)} {loading['stage']} {loading['share']:.0%}, {_time(loading['seconds'])}"
    else:
        weights = [] if model["weightBytes"] is None else [_bytes(model["weightBytes"])]
        text = " · ".join([*weights, *map(_shape, model["shapes"])])
    return _fit(text, width).rstrip()


def _shape(shape: dict[str, Any]) -> str:
    rows, seconds = max(shape["stepSeconds"].items(), key=lambda item: int(item[0]))
    knee = f"knee {shape['knee']}, cap {shape['cap']}"
    return f"{shape['width']}x{shape['height']}: {rows} rows {_time(seconds)} ({knee})"


def _rates(look: Look, style: Style, width: int) -> Iterator[str]:
    queue, recent, totals = look.queue, look.queue["recent"], look.queue["totals"]
    rows = "–" if recent["rowsPerStep"] is None else f"{recent['rowsPerStep']:.1f}"
    waited = "–" if queue["averageWaitTime"] is None else _time(queue["averageWaitTime"])
    doing = f"{queue['processingCount']} at work, {queue['queueLength']} waiting"
    left = queue["estimatedProcessingTime"]
    done = "PAUSED" if queue["paused"] else "–" if left is None else f"all done in {_time(left)}"
    line = _fit(f"now     {doing} · {done} · backlog {_time(queue['backlogSeconds'])}", width).rstrip()
    yield style.paint(line, YELLOW) if queue["paused"] else line
    rate = f"{recent['picturesPerSecond']:.2f} pictures/s · {rows} rows a step · waited {waited}"
    yield _fit(f"minute  {rate}", width).rstrip()
    total = f"total   {totals['pictures']} pictures · {totals['failures']} failed · {totals['refusals']} refused"
    line = _fit(total, width).rstrip()
    yield style.paint(line, YELLOW) if totals["failures"] or totals["refusals"] else line


def _image(image: dict[str, Any], style: Style, width: int) -> str:
    """One image: its stage and progress, or its place in line and how long it has waited; and when it will be done."""
    place = image["position"]
    stage = image["stage"] if place is None else f"#{place + 1}"
    share = image["step"] / image["steps"]
    left = image["estimatedTimeRemaining"]
    eta = "–" if left is None else _time(left)
    size = f"{image['width']}x{image['height']}"
    steps = f"{image['step']}/{image['steps']}"
    priority = f"p{image['priority']:+d}" if image["priority"] else ""
    tail = f" {steps:>7} {eta:>7} {priority:<4}"
    names = min(30, max(10, width - 62))
    head = f"  {_fit(stage, 9)} {_fit(image['model'], names)} {_fit(size, 9)} "
    middle = max(4, min(40, width - len(head) - len(tail)))
    bar, waited = _bar(share, middle), _fit(f"waited {_time(image['waited'])}", middle)
    return f"{head}{style.paint(bar, GREEN) if place is None else style.paint(waited, DIM)}{tail}".rstrip()


def _bar(share: float, width: int) -> str:
    full = round(max(0.0, min(1.0, share)) * width)
    return "█" * full + "░" * (width - full)


def _fit(text: str, width: int) -> str:
    """Exactly so many columns. What a server says may hold what would steer the terminal; that is left out."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text.ljust(width) if len(text) <= width else text[: max(0, width - 1)] + "…"[:width]


def _time(seconds: float) -> str:
    """Seconds as people say them, in at most seven letters."""
    if seconds == 0:
        return "0 s"
    if seconds < 1:
        return f"{seconds * 1000:.{1 if seconds < 0.01 else 0}f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
