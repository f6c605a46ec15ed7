"""What a model's work takes on one device, as measured there, and how that reads in between. No torch here."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

Point: TypeAlias = tuple[float, float]
"""An amount of work and the seconds it took."""


class Profile(msgspec.Struct, frozen=True):
    """One model on one device.

    A forward pass costs what its floating-point operations cost, whichever rows and shape they come from: on the
    demo model 16 rows of 64x64, 4 of 128x128 and 2 of 192x192 (16, 17 and 18 units of work) took 86, 82 and 85 ms. So
    one curve over operations serves every shape, and a shape never measured is read off it.

    Attributes:
        flops: (a, b, c): one row of p pixels takes a + b p + c p² operations; convolutions and cross-attention grow
            with the pixels, self-attention with their square.
        steps: (operations of a whole forward pass, seconds), by operations.
        encode_seconds: of one image's prompts, its noise and its sampler.
        decode_seconds: of one pixel in the VAE.
        counted: whether `flops` are operations; else they are pixels, by which a curve serves one shape well and the
            others roughly.
    """

    flops: tuple[float, float, float]
    steps: tuple[Point, ...]
    encode_seconds: float
    decode_seconds: float
    counted: bool = True

    def row_flops(self, pixels: int) -> float:
        """Operations of one row of so many pixels."""
        return polynomial(self.flops, pixels)

    def step_seconds(self, pixels: int, rows: int) -> float:
        """Seconds of one forward pass."""
        return read_curve(self.steps, self.row_flops(pixels) * rows)


PIXELS = (0.0, 1.0, 0.0)
"""Coefficients in place of operations that nobody counted: the pixels themselves."""


def polynomial(coefficients: tuple[float, float, float], pixels: float) -> float:
    """a + b p + c p²."""
    constant, linear, square = coefficients
    return constant + linear * pixels + square * pixels * pixels


def read_curve(points: Sequence[Point], work: float) -> float:
    """Seconds at some amount of work: linear between the points, flat before the first, beyond the last at its rate.

    Flat, because a device that is not filled takes its least time; at its rate, because a full one only gets busier.
    """
    if work <= points[0][0]:
        return points[0][1]
    if work >= points[-1][0]:
        return points[-1][1] * work / points[-1][0]
    above = bisect_left(points, (work, 0.0))
    (low, quick), (high, slow) = points[above - 1], points[above]
    return quick + (slow - quick) * (work - low) / (high - low)


def curve_of(measured: Sequence[Point]) -> tuple[Point, ...]:
    """Measurements in order of work, in which more work never takes less time: where noise says so, both get the mean.

    This is isotonic regression by pooling adjacent violators (Ayer et al., 1955, doi:10.1214/aoms/1177728423).
    """
    pools: list[list[Point]] = []
    for point in sorted(measured):
        pools.append([point])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            last = pools.pop()
            pools[-1].extend(last)
    levelled = [(work, _mean(pool)) for pool in pools for work, _ in pool]
    return tuple(dict(levelled).items())


def _mean(pool: Sequence[Point]) -> float:
    return sum(seconds for _, seconds in pool) / len(pool)


def fit_flops(counted: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """The coefficients (a, b, c) of a + b p + c p² through counted (pixels, operations).

    Three counts give all three (Newton's divided differences); fewer give a straight line through the origin.
    """
    if len(counted) < 3:
        pixels, flops = counted[-1]
        return 0.0, flops / pixels, 0.0
    (p, f), (q, g), (r, h) = counted[0], counted[1], counted[2]
    slope = (g - f) / (q - p)
    square = ((h - g) / (r - q) - slope) / (r - p)
    linear = slope - square * (p + q)
    return f - linear * p - square * p * p, linear, square
