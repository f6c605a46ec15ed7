"""What a size may be written as, and which size an aspect ratio comes to. No torch here."""

import re
from math import sqrt

from pipelines.catalog import ModelEntry
from pipelines.errors import InvalidRequest

_SIZE = re.compile(r"(\d{1,6})\s*[xX×]\s*(\d{1,6})")
_RATIO = re.compile(r"(\d{1,4}(?:\.\d{1,4})?)\s*[:/]\s*(\d{1,4}(?:\.\d{1,4})?)")
_NEAR = 1.06
"""A native size this close to the wished ratio is taken: models do best at the sizes they were trained on."""


def parse_size(written: str) -> tuple[int | None, int | None]:
    """ "WxH" in pixels; (None, None) for "auto".

    Raises:
        InvalidRequest: anything else.
    """
    if written.strip().lower() == "auto":
        return None, None
    match = _SIZE.fullmatch(written.strip())
    if match is None:
        raise InvalidRequest(
            "size", f'size must be "WIDTHxHEIGHT" such as "1024x1024", or "auto", not {written[:24]!r}.'
        )
    return int(match[1]), int(match[2])


def size_of_ratio(written: str, entry: ModelEntry) -> tuple[int, int]:
    """The size of an aspect ratio such as "16:9", with about as many pixels as the model's default size.

    Raises:
        InvalidRequest: not a ratio, or one beyond 1:8.
    """
    match = _RATIO.fullmatch(written.strip())
    ratio = float(match[1]) / float(match[2]) if match and float(match[2]) else 0.0
    if not 1 / 8 <= ratio <= 8:
        raise InvalidRequest(
            "aspect_ratio", f'aspect_ratio must be "W:H" such as "16:9", from 1:8 to 8:1, not {written[:24]!r}.'
        )
    native = [(int(width), int(height)) for width, _, height in (size.partition("x") for size in entry.native_sizes)]
    near = min(native, key=lambda size: _off(size[0] / size[1], ratio))
    if _off(near[0] / near[1], ratio) < _NEAR:
        return near
    return _with_ratio(ratio, entry)


def _with_ratio(ratio: float, entry: ModelEntry) -> tuple[int, int]:
    """The size nearest a ratio that the model can make; never one that its own limits refuse."""
    step, pixels = entry.size_step, entry.width * entry.height
    longest = entry.max_side // step * step
    width, height = (
        min(longest, max(step, round(side / step) * step)) for side in (sqrt(pixels * ratio), sqrt(pixels / ratio))
    )
    if width * height > entry.max_pixels:  # rounded up over a budget that has no room to spare
        return (width - step, height) if width > height else (width, height - step)
    return width, height


def _off(ratio: float, wished: float) -> float:
    return max(ratio / wished, wished / ratio)
