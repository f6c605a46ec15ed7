"""Amounts of money: whole millionths of the operator's currency where they are kept and added, floats at the edges.

Whole numbers, because SQLite has no decimal type: it adds integers exactly, so that a balance can be held against the
sum of its entries in one statement. A float that is a multiple of a millionth survives both conversions.
"""

from collections.abc import Iterable

MICROS = 1_000_000


def to_micros(amount: float) -> int:
    """The nearest whole millionths."""
    return round(amount * MICROS)


def to_amount(micros: int) -> float:
    """The amount that people read."""
    return micros / MICROS


def total(amounts: Iterable[float]) -> float:
    """Their sum, without the rounding errors that floats add up to."""
    return to_amount(sum(map(to_micros, amounts)))
