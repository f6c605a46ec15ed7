"""Owns the colours: each time of day has its skies, its light, and how it tints the land."""

import random
from dataclasses import dataclass

from .scenes import Land, Time

Colour = tuple[float, float, float]
SNOW: Colour = (246, 250, 255)


def mix(first: Colour, second: Colour, amount: float) -> Colour:
    return (
        first[0] + (second[0] - first[0]) * amount,
        first[1] + (second[1] - first[1]) * amount,
        first[2] + (second[2] - first[2]) * amount,
    )


@dataclass(frozen=True)
class Palette:
    """The colours of one picture."""

    sky: tuple[Colour, Colour, Colour]
    tint: Colour
    tint_amount: float
    haze: float
    light: Colour
    cloud: Colour
    cloud_shade: Colour
    bird: Colour
    window: Colour

    def graded(self, colour: Colour, nearness: float) -> Colour:
        """A daylight colour as this light shows it; nearness runs from 0 (the horizon) to 1."""
        tinted = mix(colour, self.tint, self.tint_amount)
        return mix(tinted, mix(self.sky[1], self.sky[2], 0.3), (1 - nearness) * self.haze)

    def snowy(self, nearness: float) -> Colour:
        """Snow in this light: it shines even at night, or nobody would see it."""
        return mix(SNOW, self.graded(SNOW, nearness), 0.5)


PALETTES = {
    Time.DAWN: Palette(
        sky=((132, 158, 214), (226, 186, 212), (255, 222, 186)),
        tint=(196, 132, 158),
        tint_amount=0.30,
        haze=0.55,
        light=(255, 250, 214),
        cloud=(255, 240, 234),
        cloud_shade=(238, 196, 208),
        bird=(84, 58, 96),
        window=(255, 236, 190),
    ),
    Time.DAY: Palette(
        sky=((52, 136, 222), (116, 190, 242), (208, 236, 250)),
        tint=(255, 255, 255),
        tint_amount=0.0,
        haze=0.40,
        light=(255, 218, 60),
        cloud=(255, 255, 255),
        cloud_shade=(206, 226, 244),
        bird=(36, 44, 72),
        window=(206, 232, 246),
    ),
    Time.DUSK: Palette(
        sky=((70, 38, 112), (212, 76, 100), (255, 168, 74)),
        tint=(58, 18, 66),
        tint_amount=0.58,
        haze=0.45,
        light=(255, 240, 160),
        cloud=(250, 140, 124),
        cloud_shade=(186, 76, 118),
        bird=(40, 14, 48),
        window=(255, 208, 96),
    ),
    Time.NIGHT: Palette(
        sky=((10, 16, 50), (22, 38, 92), (50, 78, 138)),
        tint=(10, 18, 58),
        tint_amount=0.68,
        haze=0.35,
        light=(252, 238, 184),
        cloud=(104, 122, 176),
        cloud_shade=(68, 84, 140),
        bird=(206, 214, 240),
        window=(255, 214, 104),
    ),
}

# A second sky for each time; every picture lies somewhere between the two.
OTHER_SKIES: dict[Time, tuple[Colour, Colour, Colour]] = {
    Time.DAWN: ((168, 176, 226), (248, 190, 196), (255, 236, 200)),
    Time.DAY: ((80, 164, 230), (150, 208, 244), (228, 244, 250)),
    Time.DUSK: ((108, 40, 104), (236, 100, 78), (255, 196, 92)),
    Time.NIGHT: ((18, 14, 58), (40, 34, 100), (74, 74, 146)),
}

# From the farthest layer to the nearest, in daylight.
LANDS: dict[Land, tuple[Colour, ...]] = {
    Land.MOUNTAINS: ((134, 152, 190), (92, 112, 152), (84, 140, 92), (52, 108, 74)),
    Land.HILLS: ((156, 206, 128), (112, 182, 92), (74, 152, 76), (44, 118, 64)),
    Land.SEA: ((128, 204, 224), (20, 96, 168)),
    Land.DESERT: ((246, 212, 150), (236, 184, 110), (220, 154, 82), (196, 124, 64)),
    Land.FOREST: ((118, 170, 142), (62, 128, 98), (26, 84, 66), (18, 62, 52)),
    Land.CITY: ((150, 172, 202), (98, 122, 162), (54, 72, 112)),
}


def palette_of(time: Time, rng: random.Random) -> Palette:
    base, amount = PALETTES[time], rng.random()
    top, middle, horizon = (
        mix(first, second, amount) for first, second in zip(base.sky, OTHER_SKIES[time], strict=True)
    )
    return Palette(**{**base.__dict__, "sky": (top, middle, horizon)})
