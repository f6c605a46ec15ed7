"""Owns the drawing surface: shapes in design pixels, supersampled three times and reduced at the end."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .palettes import Colour

SUPERSAMPLING = 3
DESIGN_SIZE = 128
Point = tuple[float, float]
FloatArray = npt.NDArray[np.float64]


def _rounded(colour: Colour) -> tuple[int, int, int]:
    return round(colour[0]), round(colour[1]), round(colour[2])


class Canvas:
    """Lengths are in design pixels: 128 of them span a square picture, whatever its real size."""

    def __init__(self, width: int, height: int) -> None:
        self._final = width, height
        self._image = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING))
        self._draw = ImageDraw.Draw(self._image)
        # Between the short side and the mean side, so that objects neither shrink nor overflow.
        side = (min(width, height) + math.sqrt(width * height)) / 2
        self._scale = side * SUPERSAMPLING / DESIGN_SIZE
        self.width = width * SUPERSAMPLING / self._scale
        self.height = height * SUPERSAMPLING / self._scale

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self._scale, y * self._scale) for x, y in points]

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._draw.polygon(self._pixels(points), fill=_rounded(colour))

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self._draw.rectangle(self._pixels([(left, top), (right, bottom)]), fill=_rounded(colour))

    def ellipse(self, x: float, y: float, radius: float, colour: Colour, *, radius_y: float | None = None) -> None:
        tall = radius if radius_y is None else radius_y
        box = self._pixels([(x - radius, y - tall), (x + radius, y + tall)])
        self._draw.ellipse(box, fill=_rounded(colour))

    def line(self, points: Sequence[Point], thickness: float, colour: Colour) -> None:
        width = max(1, round(thickness * self._scale))
        self._draw.line(self._pixels(points), fill=_rounded(colour), width=width, joint="curve")

    def below(self, ridge: FloatArray, colour: Colour) -> None:
        """Fill everything under a ridge: heights at evenly spaced places from left to right."""
        places = np.linspace(0, self.width, len(ridge))
        corners = [(self.width, self.height + 1), (0.0, self.height + 1)]
        self.polygon([*zip(places.tolist(), ridge.tolist(), strict=True), *corners], colour)

    def gradient(self, top: float, bottom: float, stops: Sequence[Colour]) -> None:
        """Fill the rows between two heights with colours spaced evenly from top to bottom."""
        first, last = round(top * self._scale), min(round(bottom * self._scale), self._image.height)
        rows = np.linspace(0, len(stops) - 1, max(last - first, 1))
        channels = [np.interp(rows, range(len(stops)), [stop[i] for stop in stops]) for i in range(3)]
        column = np.stack(channels, axis=-1).round().astype(np.uint8)[:, None]
        strip = Image.fromarray(np.repeat(column, self._image.width, axis=1))
        self._image.paste(strip, (0, first))

    def glow(self, x: float, y: float, radius: float, colour: Colour, strength: float) -> None:
        """A soft round light that fades out at its radius."""
        size = round(2 * radius * self._scale)
        line = np.linspace(-1, 1, size)
        distance = np.hypot(line[:, None], line[None, :])
        alpha = (np.clip(1 - distance, 0, 1) ** 2 * 255 * strength).astype(np.uint8)
        corner = round((x - radius) * self._scale), round((y - radius) * self._scale)
        self._image.paste(_rounded(colour), corner + (corner[0] + size, corner[1] + size), Image.fromarray(alpha))

    def crescent(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A moon with its shadow to the upper right, cut out so that the sky shows through."""
        size = round(2 * radius * self._scale)
        mask = Image.new("L", (size, size))
        draw = ImageDraw.Draw(mask)
        draw.ellipse((0, 0, size - 1, size - 1), fill=255)
        shift = round(size * 0.30)
        draw.ellipse((shift, -shift * 0.55, size - 1 + shift, size - 1 - shift * 0.55), fill=0)
        corner = round((x - radius) * self._scale), round((y - radius) * self._scale)
        self._image.paste(_rounded(colour), corner + (corner[0] + size, corner[1] + size), mask)

    def finished(self) -> Image.Image:
        """The picture at its real size."""
        image = self._image.reduce(SUPERSAMPLING)
        assert image.size == self._final
        return image
