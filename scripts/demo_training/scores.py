"""Owns the scores: how often pictures show the time, the land and the extras they were asked for."""

from dataclasses import asdict, dataclass
from typing import Any

from .probe import Seen
from .scenes import Combination, Extra


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1. Recall: of the extras asked for, those seen; precision: of those seen, those asked."""

    time: float
    land: float
    extras_recall: float
    extras_precision: float
    recall_of: dict[str, float]

    def rounded(self) -> dict[str, Any]:
        facts = asdict(self)
        recall_of = {extra: round(share, 3) for extra, share in facts.pop("recall_of").items()}
        return {name: round(share, 3) for name, share in facts.items()} | {"recall_of": recall_of}


def score(asked: list[Combination], seen: list[Seen]) -> Scores:
    pairs = list(zip(asked, seen, strict=True))
    hits = sum(len(wanted.extras & found.extras) for wanted, found in pairs)
    return Scores(
        time=sum(wanted.time == found.time for wanted, found in pairs) / len(pairs),
        land=sum(wanted.land == found.land for wanted, found in pairs) / len(pairs),
        extras_recall=hits / max(sum(len(wanted.extras) for wanted in asked), 1),
        extras_precision=hits / max(sum(len(found.extras) for found in seen), 1),
        recall_of={extra.value: _recall(extra, pairs) for extra in Extra},
    )


def _recall(extra: Extra, pairs: list[tuple[Combination, Seen]]) -> float:
    found = [extra in seen.extras for wanted, seen in pairs if extra in wanted.extras]
    return sum(found) / max(len(found), 1)
