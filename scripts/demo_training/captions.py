"""Owns the words: many ways to say what a scene shows, and the list of words the tokenizer knows whole."""

import random
import re
from collections.abc import Sequence

from .scenes import Combination, Extra, Land, Time

# "Sunrise" and "sunset" promise a sun, so scenes without one are called by the other words.
TIME_WORDS = {
    Time.DAWN: ("dawn", "daybreak", "early morning", "first light", "dawn", "morning"),
    Time.DAY: ("day", "noon", "midday", "daytime", "noon", "daylight"),
    Time.DUSK: ("dusk", "evening", "twilight", "dusk", "nightfall"),
    Time.NIGHT: ("night", "midnight", "night", "late night", "nighttime"),
}
SUN_WORDS = {Time.DAWN: ("sunrise",), Time.DUSK: ("sunset", "sunset", "sundown")}
LAND_WORDS = {
    Land.MOUNTAINS: (
        "mountains",
        "the mountains",
        "mountain range",
        "peaks",
        "mountain peaks",
        "mountains",
        "alps",
    ),
    Land.HILLS: (
        "hills",
        "rolling hills",
        "green hills",
        "a meadow",
        "meadows",
        "hills",
        "fields",
        "the countryside",
    ),
    Land.SEA: ("the sea", "the ocean", "sea", "ocean", "a calm sea", "the sea", "water", "the coast"),
    Land.DESERT: ("the desert", "a desert", "desert", "sand dunes", "dunes", "desert dunes"),
    Land.FOREST: (
        "a forest",
        "the forest",
        "forest",
        "the woods",
        "woods",
        "a pine forest",
        "pines",
        "woodland",
    ),
    Land.CITY: (
        "a city",
        "the city",
        "city",
        "a city skyline",
        "a skyline",
        "skyscrapers",
        "a town",
        "city buildings",
    ),
}
EXTRA_WORDS = {
    Extra.SUN: ("the sun", "a bright sun", "sun", "a sun", "sunshine"),
    Extra.MOON: ("the moon", "a moon", "a crescent moon", "moon", "moonlight"),
    Extra.STARS: ("stars", "a starry sky", "many stars", "bright stars", "twinkling stars", "stars"),
    Extra.CLOUDS: ("clouds", "a cloudy sky", "fluffy clouds", "some clouds", "clouds"),
    Extra.BIRDS: ("birds", "a flock of birds", "flying birds", "some birds", "birds", "seagulls"),
    Extra.BOAT: ("a boat", "a sailing boat", "a sailboat", "a ship", "boat", "a boat"),
    Extra.TREE: ("a tree", "a lone tree", "one tree", "tree", "a big tree", "a tree"),
    Extra.HOUSE: ("a house", "a small house", "a cottage", "a cabin", "house", "a house", "a hut"),
    Extra.SNOW: ("snow", "snow on the ground", "winter snow", "snow"),
}
# Extras that a word in front of the time or the land can say as well.
BEFORE_TIME = {
    Extra.SUN: ("sunny",),
    Extra.MOON: ("moonlit",),
    Extra.STARS: ("starry",),
    Extra.CLOUDS: ("cloudy",),
}
BEFORE_LAND = ("snowy", "snow-covered", "wintry")
ADJECTIVES = (
    "beautiful", "calm", "quiet", "peaceful", "lovely", "serene", "dramatic", "stunning", "colorful", "colourful",
    "gorgeous", "wonderful", "silent", "pretty", "scenic", "tranquil", "epic", "vast", "distant", "nice",
)  # fmt: skip
OPENINGS = (
    "a painting of", "a picture of", "an illustration of", "a landscape of", "a drawing of", "a photo of",
    "an image of", "a poster of", "a view of", "flat vector art of", "landscape with", "there is",
)  # fmt: skip
ENDINGS = (
    "highly detailed", "vector art", "flat design", "minimalist", "digital art", "wallpaper", "4k", "trending",
    "masterpiece", "best quality", "simple shapes", "in the style of a poster", "illustration",
)  # fmt: skip
JOINING = (
    "with", "and", "under", "over", "above", "at", "in", "on", "during", "by", "near", "of", "the", "a", "an",
    "as", "is", "very", "no", "without", "showing", "featuring", "behind", "scene", "landscape", "sky", "palm",
)  # fmt: skip


def caption(combination: Combination, rng: random.Random, *, complete: bool = False) -> str:
    """One way to say what the picture shows.

    Extras are always named, so that what is not named stays away. A complete caption names the time and
    the land as well; other captions sometimes leave one out or carry words that mean nothing here.
    """
    words = _Wording(combination, rng)
    if complete or rng.random() > 0.08:
        text = rng.choice(SHAPES)(words)
    else:
        text = words.joined([rng.choice((words.time, words.land)), *words.extras], ", ")
    if not complete and rng.random() < 0.06:
        text = f"{text} {_strange_word(rng)}"
    if rng.random() < 0.25:
        text = f"{rng.choice(OPENINGS)} {text}"
    if rng.random() < 0.15:
        text = f"{text}, {rng.choice(ENDINGS)}"
    return text


class _Wording:
    """The words chosen for one caption."""

    def __init__(self, combination: Combination, rng: random.Random) -> None:
        self._rng, self._left = rng, sorted(combination.extras)
        rng.shuffle(self._left)
        self.time = self._time(combination)
        self.land = self._land(combination)
        self.extras = [rng.choice(_words_of(extra, combination.land)) for extra in self._left]

    def _time(self, combination: Combination) -> str:
        rng, extras = self._rng, combination.extras
        time = rng.choice(TIME_WORDS[combination.time])
        if combination.time in SUN_WORDS and Extra.SUN in extras and rng.random() < 0.65:
            time = rng.choice(SUN_WORDS[combination.time])
            if rng.random() < 0.7:
                self._left.remove(Extra.SUN)
        elif combination.time in SUN_WORDS and extras & {Extra.MOON, Extra.STARS} and rng.random() < 0.3:
            time = rng.choice(SUN_WORDS[combination.time])
        for extra, adjectives in BEFORE_TIME.items():
            if extra in self._left and rng.random() < 0.2:
                self._left.remove(extra)
                return f"{rng.choice(adjectives)} {time}"
        return time

    def _land(self, combination: Combination) -> str:
        land = self._rng.choice(LAND_WORDS[combination.land])
        if Extra.SNOW not in self._left or self._rng.random() > 0.5:
            return land
        self._left.remove(Extra.SNOW)
        article, noun = re.fullmatch(r"(the |a )?(.+)", land).groups("")  # type: ignore[union-attr]
        return f"{article}{self._rng.choice(BEFORE_LAND)} {noun.removeprefix('green ')}"

    def adjective(self) -> str:
        return self._rng.choice(ADJECTIVES) + " " if self._rng.random() < 0.35 else ""

    def a_time(self) -> str:
        """The time as the subject of the caption: "a beautiful sunset"."""
        described = self.adjective() + self.time
        if self._rng.random() < 0.5:
            return described
        return f"{'an' if described[0] in 'aeiou' else 'a'} {described}"

    def a_land(self) -> str:
        """The land as the subject, with an adjective behind its article."""
        article, noun = re.fullmatch(r"(the |a )?(.+)", self.land).groups("")  # type: ignore[union-attr]
        return f"{article}{self.adjective()}{noun}"

    def at_time(self) -> str:
        return f"{self._rng.choice(('at', 'at', 'at', 'during', 'in the', 'on a', 'under a'))} {self.time}"

    def with_extras(self) -> str:
        if not self.extras:
            return ""
        listed = self.joined(self.extras, self._rng.choice((" and ", ", ", ", ")))
        return self._rng.choice((" with ", " with ", ", ", " and ")) + listed

    def joined(self, parts: Sequence[str], separator: str) -> str:
        """A list; two or more parts may end in "and"."""
        if len(parts) > 1 and self._rng.random() < 0.6:
            return separator.join(parts[:-1]) + " and " + parts[-1]
        return separator.join(parts)

    def shuffled(self) -> list[str]:
        parts = [self.time, self.land, *self.extras]
        self._rng.shuffle(parts)
        return parts

    def pick(self, *words: str) -> str:
        return self._rng.choice(words)


def _words_of(extra: Extra, land: Land) -> tuple[str, ...]:
    if extra is Extra.TREE and land in (Land.SEA, Land.DESERT):
        return (*EXTRA_WORDS[extra], "a palm tree", "a palm tree", "a palm")
    return EXTRA_WORDS[extra]


def _time_over_land(words: _Wording) -> str:
    return f"{words.a_time()} {words.pick('over', 'over', 'in', 'above', 'at')} {words.land}{words.with_extras()}"


def _land_at_time(words: _Wording) -> str:
    return f"{words.a_land()} {words.at_time()}{words.with_extras()}"


def _land_with_extras_at_time(words: _Wording) -> str:
    return f"{words.a_land()}{words.with_extras()} {words.at_time()}"


def _extras_first(words: _Wording) -> str:
    if not words.extras:
        return _land_at_time(words)
    listed = words.joined(words.extras, ", ")
    return f"{listed} {words.pick('in', 'on', 'over', 'near', 'by', 'above')} {words.land} {words.at_time()}"


def _tags(words: _Wording) -> str:
    return ", ".join(words.shuffled())


def _at_time_first(words: _Wording) -> str:
    return f"{words.at_time()}, {words.a_land()}{words.with_extras()}"


SHAPES = (
    _time_over_land, _time_over_land, _land_at_time, _land_at_time, _land_with_extras_at_time, _extras_first,
    _tags, _at_time_first,
)  # fmt: skip


def _strange_word(rng: random.Random) -> str:
    """A word the tokenizer has to spell; it must not change the picture."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 8)))


def known_words() -> list[str]:
    """Every word that captions use, sorted."""
    groups: list[Sequence[str]] = [ADJECTIVES, OPENINGS, ENDINGS, JOINING, BEFORE_LAND]
    for table in (TIME_WORDS, SUN_WORDS, LAND_WORDS, EXTRA_WORDS, BEFORE_TIME):
        groups.extend(table.values())
    return sorted({word for group in groups for phrase in group for word in re.findall(r"[a-z]+", phrase)})
