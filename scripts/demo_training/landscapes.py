"""Owns the drawing of a scene: sky, land and extras, from back to front."""

import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .canvas import Canvas, FloatArray
from .lands import SAMPLES, Ground
from .palettes import Colour, Palette, mix, palette_of
from .scenes import Extra, Land, Scene, Time

Place = tuple[float, float]


@dataclass(frozen=True)
class Stage:
    """What every extra needs to know to place itself."""

    canvas: Canvas
    palette: Palette
    ground: Ground
    time: Time
    rng: random.Random
    # A place per extra across the width: shuffled slots, so that they rarely hide each other.
    sky_slots: list[float]
    land_slots: list[float]
    # Where the sun or the moon is, once drawn: clouds and stars keep off it.
    lights: list[Place] = field(default_factory=list)

    @property
    def skyline(self) -> float:
        return self.ground.skyline

    def sky_x(self) -> float:
        return (self.sky_slots.pop() + self.rng.uniform(-0.06, 0.06)) * self.canvas.width

    def land_x(self) -> float:
        return (self.land_slots.pop() + self.rng.uniform(-0.05, 0.05)) * self.canvas.width

    def lit(self, colour: Colour, amount: float = 0.6) -> Colour:
        """The colour of an object near the viewer; it keeps more of its own colour than the land."""
        return mix(colour, self.palette.graded(colour, 1.0), amount)


def render(scene: Scene) -> Image.Image:
    """Draw a scene. The result depends on nothing but the scene."""
    rng = random.Random(f"{scene.combination.name}|{scene.seed}")
    canvas = Canvas(scene.width, scene.height)
    time, extras = scene.combination.time, scene.combination.extras
    palette = palette_of(time, rng)
    ground = Ground(canvas, palette, scene.combination.land, Extra.SNOW in extras, rng)
    slots = [rng.sample([0.2, 0.5, 0.8], 3) for _ in range(2)]
    stage = Stage(canvas, palette, ground, time, rng, slots[0], slots[1])
    canvas.gradient(0, canvas.height, [palette.sky[0], palette.sky[1], palette.sky[2], palette.sky[2]])
    for extra, draw in IN_THE_SKY.items():
        if extra in extras:
            draw(stage)
    ridge = ground.draw()
    for extra, stand in ON_THE_LAND.items():
        if extra in extras:
            stand(stage, ridge)
    if Extra.BIRDS in extras:
        _birds(stage)
    return canvas.finished()


def _stars(stage: Stage) -> None:
    """Bold four-pointed sparkles, spread so that no two touch."""
    canvas, rng, placed = stage.canvas, stage.rng, list[Place]()
    colour: Colour = (255, 252, 226)
    wanted = round(9 * canvas.width / 128)
    for _ in range(250):
        x, y = rng.uniform(7, canvas.width - 7), rng.uniform(7, stage.skyline - 10)
        if len(placed) < wanted and all(np.hypot(x - a, y - b) > 15 for a, b in placed + stage.lights):
            placed.append((x, y))
            _sparkle(canvas, x, y, rng.uniform(4.2, 6.2), colour)


def _sparkle(canvas: Canvas, x: float, y: float, radius: float, colour: Colour) -> None:
    waist = radius * 0.30
    points = [
        (x, y - radius), (x + waist, y - waist), (x + radius, y), (x + waist, y + waist),
        (x, y + radius), (x - waist, y + waist), (x - radius, y), (x - waist, y - waist),
    ]  # fmt: skip
    canvas.polygon(points, colour)


def _sun(stage: Stage) -> None:
    """High and yellow by day, low and large at dawn and at dusk."""
    canvas, rng, x = stage.canvas, stage.rng, stage.sky_x()
    low = stage.time is not Time.DAY
    radius = rng.uniform(14, 17) if low else rng.uniform(11, 13)
    y = stage.skyline - radius * rng.uniform(0.7, 1.3) if low else canvas.height * rng.uniform(0.15, 0.24)
    stage.lights.append((x, y))
    canvas.glow(x, y, radius * 2.6, mix(stage.palette.light, (255, 255, 255), 0.3), 0.55)
    canvas.ellipse(x, y, radius, stage.palette.light)


def _moon(stage: Stage) -> None:
    x, y = stage.sky_x(), stage.canvas.height * stage.rng.uniform(0.16, 0.25)
    light: Colour = (255, 244, 196)
    radius = stage.rng.uniform(11, 13.5)
    stage.lights.append((x, y))
    stage.canvas.glow(x, y, radius * 2.2, light, 0.28)
    stage.canvas.crescent(x, y, radius, light)


def _clouds(stage: Stage) -> None:
    canvas, rng = stage.canvas, stage.rng
    count = rng.choice((2, 3)) if canvas.width < 150 else rng.choice((3, 4))
    for index in range(count):
        x = canvas.width * (index + rng.uniform(0.3, 0.7)) / count
        y, half = canvas.height * rng.uniform(0.14, 0.38), rng.uniform(17, 24)
        for light in stage.lights:
            if abs(x - light[0]) < half + 8 and abs(y - light[1]) < 24:
                y = light[1] + 26 if light[1] < 0.3 * canvas.height else light[1] - 28
        _cloud(stage, x, y, half)


def _cloud(stage: Stage, x: float, y: float, half: float) -> None:
    """Three puffs on a flat base with a darker underside."""
    for colour, lift in ((stage.palette.cloud_shade, 0.0), (stage.palette.cloud, 0.14 * half)):
        for offset, radius, rise in ((-0.55, 0.30, 0.2), (-0.08, 0.46, 0.42), (0.48, 0.34, 0.24)):
            stage.canvas.ellipse(x + offset * half, y - rise * half - lift, radius * half, colour)
        wide = half * (1.0 if lift == 0.0 else 0.94)
        stage.canvas.ellipse(x, y - lift, wide, colour, radius_y=0.24 * half)


def _birds(stage: Stage) -> None:
    """A small flock of bold gull wings."""
    canvas, rng = stage.canvas, stage.rng
    centre = canvas.width * rng.uniform(0.3, 0.7), canvas.height * rng.uniform(0.2, 0.34)
    for place in ((-20, 4), (0, -8), (19, 5), (2, 12))[: rng.choice((3, 4))]:
        x = centre[0] + place[0] + rng.uniform(-4, 4)
        y = centre[1] + place[1] + rng.uniform(-3, 3)
        span = rng.uniform(6.5, 8.5)
        for side in (-1, 1):
            wing = [(x, y), (x + side * span * 0.45, y - span * 0.55), (x + side * span, y - span * 0.30)]
            tip = [(x + side * span * 0.5, y - span * 0.18), (x, y + span * 0.28)]
            canvas.polygon(wing + tip, stage.palette.bird)


def _ground_at(stage: Stage, ridge: FloatArray, x: float) -> float:
    return float(np.interp(x, np.linspace(0, stage.canvas.width, SAMPLES), ridge))


def _headland(stage: Stage, x: float, ridge: FloatArray) -> None:
    """By the sea, what stands on land stands on an islet."""
    y = _ground_at(stage, ridge, x)
    stage.canvas.ellipse(x, y + 7, 30, stage.lit((222, 196, 132), 0.9), radius_y=9)
    stage.canvas.ellipse(x, y + 4, 26, stage.lit((96, 160, 84), 0.9), radius_y=7)


def _house(stage: Stage, ridge: FloatArray) -> None:
    canvas, x = stage.canvas, stage.land_x()
    if stage.ground.land is Land.SEA:
        _headland(stage, x, ridge)
    base = _ground_at(stage, ridge, x) + 3
    half, wall, roof = 13.0, 15.0, 12.0
    white = stage.ground.snow
    wall_colour, roof_colour = stage.lit((250, 232, 200)), stage.lit((204, 62, 50))
    canvas.rectangle(x + 5, base - wall - roof + 1, x + 9, base - wall, roof_colour)
    canvas.rectangle(x - half, base - wall, x + half, base, wall_colour)
    gable = [(x - half - 4, base - wall), (x, base - wall - roof), (x + half + 4, base - wall)]
    canvas.polygon(gable, stage.palette.snowy(1.0) if white else roof_colour)
    canvas.rectangle(x - 8.5, base - 9, x - 2.5, base, stage.lit((122, 74, 48)))
    canvas.rectangle(x + 2.5, base - 11, x + 8.5, base - 5, mix(stage.palette.window, (255, 220, 120), 0.5))


def _tree(stage: Stage, ridge: FloatArray) -> None:
    """A round tree; a palm where it is hot."""
    x = stage.land_x()
    if stage.ground.land is Land.SEA:
        _headland(stage, x, ridge)
    base = _ground_at(stage, ridge, x) + 3
    if stage.ground.land in (Land.SEA, Land.DESERT):
        _palm(stage, x, base)
        return
    canvas, trunk = stage.canvas, stage.lit((110, 72, 46))
    leaf = stage.palette.snowy(0.8) if stage.ground.snow else stage.lit((52, 132, 60), 0.55)
    canvas.rectangle(x - 2, base - 18, x + 2, base, trunk)
    for dx, dy, radius in ((-7, -20, 9), (7, -20, 9), (0, -29, 11)):
        canvas.ellipse(x + dx, base + dy, radius, leaf)
    for dx, dy, radius in ((-6, -22, 5), (-2, -32, 6)):
        canvas.ellipse(x + dx, base + dy, radius, mix(leaf, stage.palette.light, 0.22))


def _palm(stage: Stage, x: float, base: float) -> None:
    top, leaf = (x + 4, base - 32), stage.lit((46, 128, 66), 0.55)
    stage.canvas.line([(x, base), (x + 1, base - 16), top], 3.4, stage.lit((126, 86, 54)))
    for dx, dy in ((-16, 6), (-13, -6), (0, -11), (13, -6), (16, 6)):
        middle = top[0] + dx * 0.55, top[1] + dy * 0.55 - 5
        stage.canvas.polygon([top, middle, (top[0] + dx, top[1] + dy), (middle[0], middle[1] + 5.5)], leaf)


def _boat(stage: Stage, ridge: FloatArray) -> None:
    """A sailing boat between the horizon and the viewer, with its shadow on the water."""
    canvas, rng, x = stage.canvas, stage.rng, stage.land_x()
    y = stage.skyline + (canvas.height - stage.skyline) * rng.uniform(0.30, 0.42)
    size = rng.uniform(0.92, 1.12)
    sail, jib = stage.lit((255, 252, 244), 0.45), stage.lit((228, 66, 52), 0.45)
    canvas.ellipse(x, y + 8 * size, 18 * size, mix(stage.ground.colour(1), (0, 0, 0), 0.25), radius_y=2.2)
    canvas.line([(x, y), (x, y - 34 * size)], 1.6, stage.lit((90, 60, 44)))
    canvas.polygon([(x + 1.5, y - 34 * size), (x + 1.5, y - 3), (x + 17 * size, y - 3)], sail)
    canvas.polygon([(x - 1.5, y - 29 * size), (x - 1.5, y - 3), (x - 13 * size, y - 3)], jib)
    hull = [
        (x - 17 * size, y),
        (x + 18 * size, y),
        (x + 12 * size, y + 8 * size),
        (x - 12 * size, y + 8 * size),
    ]
    canvas.polygon(hull, stage.lit((132, 74, 46), 0.5))


IN_THE_SKY = {Extra.SUN: _sun, Extra.MOON: _moon, Extra.STARS: _stars, Extra.CLOUDS: _clouds}
ON_THE_LAND = {Extra.BOAT: _boat, Extra.HOUSE: _house, Extra.TREE: _tree}
