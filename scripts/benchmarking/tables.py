"""Tables for people to read."""

from collections.abc import Sequence
from typing import Any


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, its columns aligned; the first column holds names, the others figures."""
    cells = [list(headers), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
        for row in (cells[0], rule, *cells[1:])
    )


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
