"""Owns the ground: six kinds of land in layers from the horizon to the viewer."""

import random
from dataclasses import dataclass

import numpy as np

from .canvas import Canvas, FloatArray
from .palettes import LANDS, Colour, Palette, mix
from .scenes import Land

SAMPLES = 160
# Where the land begins, as a share of the height: the sky above is free for the sun and the birds.
SKYLINES = {
    Land.MOUNTAINS: 0.46,
    Land.HILLS: 0.56,
    Land.SEA: 0.56,
    Land.DESERT: 0.58,
    Land.FOREST: 0.50,
    Land.CITY: 0.50,
}


@dataclass(frozen=True)
class Ground:
    """A land being drawn: where, in which light, and whether it is under snow."""

    canvas: Canvas
    palette: Palette
    land: Land
    snow: bool
    rng: random.Random

    @property
    def skyline(self) -> float:
        return SKYLINES[self.land] * self.canvas.height

    def colour(self, layer: int, *, snowed: float = 0.0) -> Colour:
        """The colour of a layer in this light; with snow, `snowed` of it turns white."""
        colours = LANDS[self.land]
        nearness = layer / (len(colours) - 1)
        bare = self.palette.graded(colours[layer], nearness)
        return mix(bare, self.palette.snowy(nearness), snowed if self.snow else 0.0)

    def wave(self, level: float, swing: float, length: float) -> FloatArray:
        """A smooth ridge: two sines of about the given wave length around a height."""
        places = np.linspace(0, self.canvas.width, SAMPLES)
        ridge = np.full(SAMPLES, level)
        for share, factor in ((0.7, 1.0), (0.3, 2.2)):
            phase = self.rng.uniform(0, 2 * np.pi)
            stretch = length / factor * self.rng.uniform(0.85, 1.2)
            ridge = ridge + share * swing * np.sin(2 * np.pi * places / stretch + phase)
        return ridge

    def draw(self) -> FloatArray:
        """Draw the land; return the ridge that houses and trees stand on."""
        return DRAWN_BY[self.land](self)


def _mountains(ground: Ground) -> FloatArray:
    canvas, rng = ground.canvas, ground.rng
    for layer, (foot, tall, step) in enumerate([(0.80, 44, 38), (0.88, 34, 46)]):
        x = rng.uniform(-0.6, 0.1) * step
        while x < canvas.width + step:
            _peak(ground, layer, x, foot * canvas.height, tall * rng.uniform(0.72, 1.18))
            x += step * rng.uniform(0.75, 1.2)
        canvas.rectangle(0, foot * canvas.height - 1, canvas.width, canvas.height, ground.colour(layer))
    canvas.below(ground.wave(0.82 * canvas.height, 4, 130), ground.colour(2, snowed=0.85))
    ridge = ground.wave(0.90 * canvas.height, 4, 110)
    canvas.below(ridge, ground.colour(3, snowed=0.95))
    return ridge


def _peak(ground: Ground, layer: int, x: float, foot: float, height: float) -> None:
    """A mountain with a bright and a dark face, and a white cap under snow."""
    canvas, rng = ground.canvas, ground.rng
    dark, half, top = ground.colour(layer), height * rng.uniform(0.85, 1.05), foot - height
    bright = mix(dark, ground.palette.light, 0.20)
    bend = x + half * rng.uniform(-0.05, 0.2)
    canvas.polygon([(x - half, foot), (x, top), (x + half, foot)], dark)
    canvas.polygon([(x - half, foot), (x, top), (bend, foot)], bright)
    if ground.snow:
        cap, low = 0.46, top + 0.46 * height
        white = ground.palette.snowy(0.55 + 0.35 * layer)
        zigzag = [(x + half * cap * share, low + drop) for share, drop in ((0.5, -4), (0.05, 3), (-0.5, -4))]
        canvas.polygon([(x, top), (x + half * cap, low), *zigzag, (x - half * cap, low)], white)


def _hills(ground: Ground) -> FloatArray:
    height, ridge = ground.canvas.height, np.zeros(SAMPLES)
    for layer, (level, swing, length) in enumerate([(0.58, 5, 90), (0.67, 6, 110), (0.77, 5, 120), (0.88, 4, 130)]):
        ridge = ground.wave(level * height, swing, length)
        ground.canvas.below(ridge, ground.colour(layer, snowed=0.70 + 0.09 * layer))
    return ridge


def _sea(ground: Ground) -> FloatArray:
    """Water with bright strips; a headland at the bottom carries what stands on land."""
    canvas, rng = ground.canvas, ground.rng
    far, near = ground.colour(0), ground.colour(1)
    canvas.gradient(ground.skyline, canvas.height, [far, mix(far, near, 0.65), near])
    for _ in range(round(9 * canvas.width / 128)):
        depth = rng.uniform(0.08, 0.95)
        y = ground.skyline + depth * (canvas.height - ground.skyline)
        x, half = rng.uniform(0, canvas.width), 4 + 7 * depth
        strip = mix(mix(far, near, depth), mix(far, ground.palette.light, 0.35), 0.55)
        canvas.ellipse(x, y, half, strip, radius_y=0.5 + 0.6 * depth)
    return np.full(SAMPLES, 0.90 * canvas.height)


def _desert(ground: Ground) -> FloatArray:
    height, ridge = ground.canvas.height, np.zeros(SAMPLES)
    for layer, (level, swing, length) in enumerate([(0.60, 3, 100), (0.67, 6, 130), (0.77, 6, 150), (0.89, 4, 150)]):
        ridge = ground.wave(level * height, swing, length)
        colour = ground.colour(layer)
        ground.canvas.below(ridge, mix(colour, ground.palette.light, 0.22))
        # The shaded side starts at the crest and leans away from the light.
        shade = ridge + np.clip(np.gradient(ridge) * 30, 0, 14)
        ground.canvas.below(shade, colour)
    return ridge


def _forest(ground: Ground) -> FloatArray:
    canvas, rng = ground.canvas, ground.rng
    for layer, (foot, tall, step) in enumerate([(0.68, 24, 11), (0.82, 32, 17), (0.98, 40, 25)]):
        ridge = ground.wave(foot * canvas.height, 2, 100)
        canvas.below(ridge, ground.colour(layer, snowed=0.55 + 0.2 * layer))
        x = rng.uniform(-0.5, 0.5) * step
        while x < canvas.width + step:
            base = float(np.interp(x, np.linspace(0, canvas.width, SAMPLES), ridge)) + 2
            _pine(ground, layer, x, base, tall * rng.uniform(0.8, 1.15))
            x += step * rng.uniform(0.85, 1.25)
    ridge = ground.wave(0.94 * canvas.height, 2, 120)
    canvas.below(ridge, ground.colour(3, snowed=0.95))
    return ridge


def _pine(ground: Ground, layer: int, x: float, base: float, height: float) -> None:
    """Three stacked triangles; under snow each one is white at its top."""
    colour, white = ground.colour(layer), ground.palette.snowy(0.4 + 0.3 * layer)
    for bottom, top, half in ((0.0, 0.50, 0.30), (0.28, 0.76, 0.23), (0.54, 1.0, 0.16)):
        wide, low, high = half * height, base - bottom * height, base - top * height
        ground.canvas.polygon([(x - wide, low), (x, high), (x + wide, low)], colour)
        if ground.snow:
            cut = low - 0.42 * (low - high)
            ground.canvas.polygon([(x - 0.58 * wide, cut), (x, high), (x + 0.58 * wide, cut)], white)


def _city(ground: Ground) -> FloatArray:
    canvas, rng = ground.canvas, ground.rng
    for layer, (top, wide) in enumerate([(0.44, 15), (0.54, 18), (0.66, 21)]):
        x = rng.uniform(-0.7, 0.0) * wide
        while x < canvas.width:
            span = wide * rng.uniform(0.8, 1.25)
            _building(ground, layer, x, x + span, canvas.height * (top + rng.uniform(-0.09, 0.12)))
            x += span + rng.choice((0.0, 0.0, 2.0))
    ridge = np.full(SAMPLES, 0.94 * canvas.height)
    canvas.below(ridge, mix(ground.colour(2, snowed=0.95), (0, 0, 0), 0.0 if ground.snow else 0.25))
    return ridge


def _building(ground: Ground, layer: int, left: float, right: float, top: float) -> None:
    canvas, rng, colour = ground.canvas, ground.rng, ground.colour(layer)
    canvas.rectangle(left, top, right, canvas.height, colour)
    if ground.snow:
        white = ground.palette.snowy(0.5 + 0.25 * layer)
        canvas.rectangle(left - 0.5, top - 1, right + 0.5, top + 3.2, white)
    if layer == 0:
        return
    columns = max(2, round((right - left) / 6.5))
    pitch = (right - left) / columns
    pane = mix(colour, ground.palette.window, 0.45 + 0.25 * layer)
    for row in range(int((0.94 * canvas.height - top) / 8)):
        for column in range(columns):
            if rng.random() < 0.72:
                x, y = left + pitch * (column + 0.5), top + 6 + 8 * row
                canvas.rectangle(x - 1.5, y, x + 1.5, y + 3.6, pane)


DRAWN_BY = {
    Land.MOUNTAINS: _mountains,
    Land.HILLS: _hills,
    Land.SEA: _sea,
    Land.DESERT: _desert,
    Land.FOREST: _forest,
    Land.CITY: _city,
}
