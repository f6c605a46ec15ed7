"""What a quality word comes to with one model: steps and whatever else its table says. No torch here."""

from dataclasses import replace
from math import ceil

from pipelines.catalog import ModelEntry
from pipelines.levers import QUALITY_STEPS, Preset
from pipelines.request import Wishes
from pipelines.samplers import choose, method_of

# Every word that is not OpenAI's own for an answer, and the one of those that it stands for.
_ALIASES = {"auto": "medium", "standard": "medium", "hd": "high", "draft": "low"}


def with_quality(written: str | None, wishes: Wishes, entry: ModelEntry) -> tuple[str, Wishes]:
    """Fill what a client left open with what its quality word stands for; what it said itself wins.

    A word nobody knows is medium, and the steps stay within what the sampler takes: quality is never an error.

    Returns:
        The quality in the words of a response of OpenAI's (never auto, standard, hd or draft), and the wishes.

    Raises:
        InvalidRequest: the client's own sampler or schedule is at fault.
    """
    asked = (written or "auto").lower()
    word = _ALIASES.get(asked, asked if asked in QUALITY_STEPS else "medium")
    preset = _preset((asked, word), entry)
    if wishes.sampler is None and wishes.schedule is None:  # they are chosen as a pair
        wishes = replace(wishes, sampler=preset.sampler, schedule=preset.schedule)
    for name in ("guidance_scale", "skip_guidance"):
        if getattr(wishes, name) is None:
            wishes = replace(wishes, **{name: getattr(preset, name)})
    if wishes.steps is None:
        steps = preset.steps or ceil(entry.steps * QUALITY_STEPS[word])
        most = method_of(choose(entry.prediction, wishes.sampler or entry.sampler).sampler, entry.prediction).max_steps
        wishes = replace(wishes, steps=max(1, min(most, steps)))
    return word, wishes


def _preset(words: tuple[str, str], entry: ModelEntry) -> Preset:
    """The model's table of the word as asked, else of the word it stands for, else one that leaves all open."""
    tables = {preset.word: preset for preset in entry.quality}
    return next((tables[word] for word in words if word in tables), Preset(words[1]))
