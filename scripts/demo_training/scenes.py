"""Owns the vocabulary of scenes: what can be drawn, what goes together, and which scenes are held out."""

import hashlib
import random
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations


class Time(StrEnum):
    DAWN = "dawn"
    DAY = "day"
    DUSK = "dusk"
    NIGHT = "night"


class Land(StrEnum):
    MOUNTAINS = "mountains"
    HILLS = "hills"
    SEA = "sea"
    DESERT = "desert"
    FOREST = "forest"
    CITY = "city"


class Extra(StrEnum):
    SUN = "sun"
    MOON = "moon"
    STARS = "stars"
    CLOUDS = "clouds"
    BIRDS = "birds"
    BOAT = "boat"
    TREE = "tree"
    HOUSE = "house"
    SNOW = "snow"


# An extra that is not named here goes with every time, or every land.
TIMES_OF = {
    Extra.SUN: {Time.DAWN, Time.DAY, Time.DUSK},
    Extra.MOON: {Time.DAWN, Time.DUSK, Time.NIGHT},
    Extra.STARS: {Time.DAWN, Time.DUSK, Time.NIGHT},
}
LANDS_OF = {
    Extra.BOAT: {Land.SEA},
    Extra.TREE: {Land.MOUNTAINS, Land.HILLS, Land.SEA, Land.DESERT, Land.CITY},
    Extra.HOUSE: {Land.MOUNTAINS, Land.HILLS, Land.SEA, Land.DESERT, Land.FOREST},
    Extra.SNOW: {Land.MOUNTAINS, Land.HILLS, Land.FOREST, Land.CITY},
}
MOST_EXTRAS = 3
COUNT_WEIGHTS = (0.14, 0.36, 0.32, 0.18)
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Combination:
    """What a picture shows, without how it is laid out."""

    time: Time
    land: Land
    extras: frozenset[Extra]

    @property
    def name(self) -> str:
        """The same text in every process; that of a set changes with Python's hash seed."""
        return "|".join([self.time, self.land, *sorted(self.extras)])

    @property
    def held_out(self) -> bool:
        """Whether training never sees this combination: a fixed hash, so no list has to be kept."""
        digest = hashlib.sha256(f"darkroom demo 1|{self.name}".encode()).digest()
        return bool(self.extras) and int.from_bytes(digest[:4]) % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class Scene:
    """One picture: the same scene always draws the same pixels."""

    combination: Combination
    width: int
    height: int
    seed: int


def allowed_extras(time: Time, land: Land) -> list[Extra]:
    every_time, every_land = set(Time), set(Land)
    return [
        extra for extra in Extra if time in TIMES_OF.get(extra, every_time) and land in LANDS_OF.get(extra, every_land)
    ]


def makes_sense(extras: frozenset[Extra]) -> bool:
    """The sun outshines the moon and the stars."""
    return Extra.SUN not in extras or not extras & {Extra.MOON, Extra.STARS}


def all_combinations() -> list[Combination]:
    """Every combination that can be drawn, in a fixed order."""
    return [
        Combination(time, land, frozenset(extras))
        for time in Time
        for land in Land
        for count in range(MOST_EXTRAS + 1)
        for extras in combinations(allowed_extras(time, land), count)
        if makes_sense(frozenset(extras))
    ]


class SceneSampler:
    """Draws combinations at random, from the training side or the held-out side."""

    def __init__(self, *, held_out: bool) -> None:
        self._by_count: dict[tuple[Time, Land], list[list[Combination]]] = {}
        for combination in all_combinations():
            key = combination.time, combination.land
            groups = self._by_count.setdefault(key, [[] for _ in COUNT_WEIGHTS])
            if combination.held_out == held_out:
                groups[len(combination.extras)].append(combination)

    def sample(self, rng: random.Random) -> Combination:
        """Times and lands come equally often; a scene has up to three extras."""
        groups = self._by_count[rng.choice(list(Time)), rng.choice(list(Land))]
        weights = [weight if group else 0.0 for group, weight in zip(groups, COUNT_WEIGHTS, strict=True)]
        return rng.choice(rng.choices(groups, weights)[0])
