"""What a picture costs: the price in models.toml, read strictly, and the one place where it becomes an amount."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from pipelines.errors import CatalogError

MAX_PRICE = 10**9
MAX_PER_MEGAPIXEL_STEP = 10**4
"""So that no picture costs more than MAX_PRICE, and every sum of costs stays exact as a float, too."""
MICRO = Decimal("0.000001")
"""What every amount is a multiple of: a millionth of the operator's currency."""

PER_MEGAPIXEL_STEP = "per_megapixel_step"
DEFAULT = "default"
_SIZE = re.compile(r"[1-9]\d*x[1-9]\d*")
_FORMS = (
    f'a number, a table by size such as {{"1024x1024" = 0.04, {DEFAULT} = 0.02}}, or {{{PER_MEGAPIXEL_STEP} = 0.001}}'
)


@dataclass(frozen=True)
class Price:
    """What one picture of a model costs, in the operator's currency, exactly as models.toml wrote it.

    Attributes:
        default: of a picture whose size is not in `sizes`.
        sizes: of pictures of some sizes, each written as "WIDTHxHEIGHT".
        per_megapixel_step: for a million pixels in each step; such a price has none of the others.
    """

    default: Decimal = Decimal(0)
    sizes: tuple[tuple[str, Decimal], ...] = ()
    per_megapixel_step: Decimal | None = None

    def of(self, width: int, height: int, steps: int) -> float:
        """What one picture of that size (in pixels) and with so many steps costs, in whole millionths."""
        if self.per_megapixel_step is not None:
            exact = self.per_megapixel_step * width * height * steps / 1_000_000
        else:
            exact = dict(self.sizes).get(f"{width}x{height}", self.default)
        return float(exact.quantize(MICRO, ROUND_HALF_UP))

    @property
    def told(self) -> float | dict[str, float]:
        """The price as models.toml writes it."""
        if self.per_megapixel_step is not None:
            return {PER_MEGAPIXEL_STEP: float(self.per_megapixel_step)}
        if not self.sizes:
            return float(self.default)
        return {size: float(price) for size, price in (*self.sizes, (DEFAULT, self.default))}


def read_price(written: Any, place: str) -> Price:
    """A model's price. Whether the model makes its sizes is not looked at.

    Args:
        written: as TOML gives it.
        place: of the key, for messages.

    Raises:
        CatalogError: it is none of the three forms, a key means nothing, or a number is out of bounds.
    """
    if not isinstance(written, Mapping):
        return Price(_amount(written, place))
    if PER_MEGAPIXEL_STEP in written:
        for key in written.keys() - {PER_MEGAPIXEL_STEP}:
            raise CatalogError(f"{place}.{key}: {PER_MEGAPIXEL_STEP} is the whole price; leave {key} out.")
        inside = f"{place}.{PER_MEGAPIXEL_STEP}"
        return Price(per_megapixel_step=_number(written[PER_MEGAPIXEL_STEP], inside, MAX_PER_MEGAPIXEL_STEP))
    if DEFAULT not in written:
        raise CatalogError(f"{place}: it lacks {DEFAULT}, the price of every other size; the price is {_FORMS}.")
    amounts = {key: _amount(value, f"{place}.{key}") for key, value in written.items()}
    default = amounts.pop(DEFAULT)
    for size in amounts:
        if not _SIZE.fullmatch(size):
            raise CatalogError(f"{place}: {size[:40]!r} is no size; the price is {_FORMS}.")
    return Price(default, tuple(amounts.items()))


def _amount(written: Any, place: str) -> Decimal:
    """The price of a picture, which nothing multiplies: finer than a millionth it could not be charged."""
    amount = _number(written, place, MAX_PRICE)
    if amount != amount.quantize(MICRO):
        raise CatalogError(f"{place}: {written} is finer than a millionth; write a multiple of 0.000001.")
    return amount


def _number(written: Any, place: str, most: int) -> Decimal:
    if isinstance(written, bool) or not isinstance(written, int | float):
        raise CatalogError(f"{place}: it must be {_FORMS}.")
    if not 0 <= written <= most:  # NaN fails too
        raise CatalogError(f"{place}: {written} is outside 0 to {most}.")
    return Decimal(str(written))  # what was written, not the binary fraction next to it
