"""Which images are begun, which ride the next step, which are decoded together. Pure functions of what there is.

The next step is the one of the highest value per second. An image's value is one finished picture, divided by the
forward passes it still needs: what is nearly done comes first, which no order beats in mean latency (Schrage and
Miller, 1966, doi:10.1287/opre.14.4.670). Two things bend that rule:

- *Age.* The value grows with the shares of the device an image would have had under equal sharing (`fairness`), and
  past MOST_SHARES of them it goes before all others of its class: nothing starves.
- *Backlog.* Half-empty batches waste time that everybody who waits pays for. So a step's value is multiplied by its
  efficiency, its throughput over that of the fullest batch that those present could make, to a power that rises with
  their number; and, once there are so many that its shape's like will surely come, over that of the fullest there is.

Both sides of each trade come from the cost model. Whether images ride together or one after the other follows: a row
joins a batch where the value it adds is worth the seconds it adds, which below the knee are few. `scripts/simulate.py`
holds this against other orders.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop
from typing import Protocol, TypeAlias, TypeVar

from pipelines.request import BatchKey
from server.scheduling.fairness import MOST_SHARES

DECODE_PIXELS = 4 * 1024 * 1024
"""Pixels decoded together: the VAE's memory grows with them, and past this its speed does not."""

BATCHES_BEGUN = 4
"""How many full batches of images are kept begun: each keeps its conditioning and latents on the device."""

URGENT_BATCHES = 8
"""The same for what would ride at once, so that a flood of ever shorter images cannot fill the memory."""

CROWD = 3
"""With so many images the efficiency among those present counts once, with twice as many squared, and so on."""

MULTITUDE = 30
"""The same of the efficiency among all that may come; both were found with scripts/simulate.py."""

MOST_EFFICIENCY = 4.0
"""The highest power of either."""

CLASS_VALUE = 1 / 16
"""What an image is worth beside one whose priority is higher by one: it may fill rows that cost next to nothing."""

STARVED = 10.0
"""Past so many shares an image goes before everybody, whatever its class: urgent work without end starves nobody."""

ABOVE_ALL = 1000
"""A class above every priority that can be asked for."""

SWAP_SHARES = 1.0
"""How many shares of waiting make a model's turn come that has no room beside the busy ones."""


LEAST_SLACK, MOST_LATE = 0.5, 0.25
"""An image with a deadline goes before its class from when it can afford to wait for no more than this many times its
solo time, until it would be late by more than this many times that."""

LOOK_SECONDS = 0.25
"""How often the line is looked at for images that only time brings to the front, as a deadline or somebody's share."""


@dataclass(frozen=True)
class Turn:
    """Which job of which owner an image belongs to, where no more than `most` of the owner's jobs may be at work."""

    owner: str
    job: str
    most: int


class Candidate(Protocol):
    """An image as the policy sees it.

    `shares` is how often equal sharing would have finished it by now; `pressing` says that somebody put it
    ahead of its class, or that it meets its deadline only if it goes on now. `turn` is None where its owner has no
    bound on its jobs at work.
    """

    @property
    def key(self) -> BatchKey: ...
    @property
    def rows(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def order(self) -> int: ...
    @property
    def evaluations_left(self) -> int: ...
    @property
    def shares(self) -> float: ...
    @property
    def pressing(self) -> bool: ...
    @property
    def begun(self) -> bool: ...
    @property
    def turn(self) -> Turn | None: ...


class Costs(Protocol):
    """What the policy asks of the cost model."""

    def step_seconds(self, key: BatchKey, rows: int) -> float: ...
    def efficiency(self, key: BatchKey, rows: int, most: int) -> float: ...


class Caps(Protocol):
    """The most rows a forward pass of a key may have."""

    def __call__(self, key: BatchKey) -> int: ...


C = TypeVar("C", bound=Candidate)

Weighed: TypeAlias = tuple[tuple[int, int], float, C]
"""An image with its rank and the value that one row of its step has among its like; thousands may be weighed a turn."""


def ride(images: Sequence[C], costs: Costs, caps: Caps, crowd: int) -> list[C]:
    """The batch of the next step: images of one key, at most `caps(key)` rows (one image always fits).

    Only keys that hold an image of the foremost rank are looked at; others may fill that batch up.

    Args:
        crowd: how many images there are in all, those not begun too.
    """
    return _ride([_weigh(image) for image in images], costs, caps, crowd)


def _ride(images: Sequence["Weighed[C]"], costs: Costs, caps: Caps, crowd: int) -> list[C]:
    if not images:
        return []
    alike: dict[BatchKey, list[Weighed[C]]] = {}
    for weighed in images:
        alike.setdefault(weighed[2].key, []).append(weighed)
    ranks = {key: max(rank for rank, _, _ in ranked) for key, ranked in alike.items()}
    foremost, top = max(ranks.values()), max(image.priority for _, _, image in images)
    powers = min(MOST_EFFICIENCY, crowd / CROWD), min(MOST_EFFICIENCY, crowd / MULTITUDE)
    best: list[C] = []
    highest = -1.0
    for key in (key for key, rank in ranks.items() if rank == foremost):
        batch, value = _best_of(alike[key], top, powers, costs, caps(key))
        if value > highest:
            best, highest = batch, value
    return best


def in_turn(images: Sequence[C]) -> list[C]:
    """The images that may be at work as far as their owners' bounds go.

    Of an owner whose jobs at work are bounded these are the images of so many jobs: those with an image begun, then the
    foremost and the eldest.
    """
    bounded = [image for image in images if image.turn is not None]
    if not bounded:
        return list(images)
    jobs: dict[str, set[str]] = {}
    for image in sorted(bounded, key=lambda image: (image.begun, _rank(image), -image.order), reverse=True):
        assert (turn := image.turn) is not None
        theirs = jobs.setdefault(turn.owner, set())
        if len(theirs) < turn.most:
            theirs.add(turn.job)
    return [image for image in images if (turn := image.turn) is None or turn.job in jobs[turn.owner]]


def admit(waiting: Sequence[C], begun: Sequence[C], costs: Costs, caps: Caps, most_rows: int) -> list[C]:
    """The waiting images to encode and begin now, all of one model: those that would ride next, or right after.

    Args:
        waiting: images whose model is on the device.
        begun: the images begun and not yet finished.
        most_rows: of any forward pass.
    """
    if not waiting:
        return []
    crowd = len(waiting) + len(begun)
    rows = sum(image.rows for image in begun)
    everybody = [_weigh(image) for image in (*begun, *waiting)]
    chosen: list[C] = []
    for batches in (URGENT_BATCHES, BATCHES_BEGUN):
        riding = set(map(id, _ride(everybody, costs, caps, crowd)))
        for image in waiting:
            fits = rows < batches * most_rows and (not chosen or image.key.model == chosen[0].key.model)
            if id(image) in riding and fits:
                chosen.append(image)
                rows += image.rows
        everybody = [weighed for weighed in everybody if id(weighed[2]) not in riding]
    return chosen


def decode(finished: Sequence[C]) -> list[C]:
    """The finished images to decode together: the foremost one's key, at most `DECODE_PIXELS` (one always fits)."""
    if not finished:
        return []
    key = max(finished, key=lambda image: (_rank(image), -image.order)).key
    count = max(1, DECODE_PIXELS // (key.width * key.height))
    return [image for image in finished if image.key == key][:count]


def next_model(waiting: Sequence[C], absent: Collection[str]) -> C | None:
    """The image whose model is to be loaded next: of those whose model is absent, the foremost and then the eldest."""
    without = [image for image in waiting if image.key.model in absent]
    return max(without, key=lambda image: (_rank(image), -image.order), default=None)


def not_held(ready: Sequence[C], waiting: Sequence[C], crowding: Callable[[str], Collection[str]]) -> list[C]:
    """Of the images that could be begun, those that need not wait for a swap of models.

    A swap is due once an image whose model finds no room has had a whole share of the device's time go by. The models
    in its way then drain: none of their images is begun that has waited for less, in shares, but those of a higher
    class. Whoever waited longest is held by nobody, so each swap lets somebody go on.

    Args:
        crowding: the models that find no room while a given one has images in flight.
    """
    in_the_way = {model: crowding(model) for model in {image.key.model for image in ready}}
    lacking = set[str]().union(*in_the_way.values())
    # Of each model without room, by priority, the shares of the image that waited longest.
    due: dict[tuple[str, int], float] = {}
    for image in waiting if lacking else ():
        if image.key.model in lacking and (shares := image.shares) >= SWAP_SHARES:
            line = image.key.model, image.priority
            due[line] = max(shares, due.get(line, 0.0))

    def held(image: C) -> bool:
        found = [
            shares
            for (model, priority), shares in due.items()
            if priority >= image.priority and model in in_the_way[image.key.model]
        ]
        return bool(found) and max(found) > image.shares

    return [image for image in ready if not held(image)] if due else list(ready)


def presses(slack: float, solo: float) -> bool:
    """Whether an image is ready by its deadline only if it goes on now. One that is past saving presses nobody.

    Args:
        slack: the seconds it can still afford to wait.
        solo: its seconds with the device to itself.
    """
    return -MOST_LATE * solo <= slack <= max(LEAST_SLACK * solo, LOOK_SECONDS)


def _rank(image: Candidate) -> tuple[int, int]:
    """What goes before value: the class, and within it who waited too long or has a deadline at stake."""
    return _ranked(image, image.shares)


def _ranked(image: Candidate, shares: float) -> tuple[int, int]:
    if shares >= STARVED:
        return ABOVE_ALL, int(shares)
    return image.priority, 2 if shares >= MOST_SHARES else 1 if image.pressing else 0


def _weigh(image: C) -> Weighed[C]:
    shares = image.shares
    return _ranked(image, shares), (1 + shares) / (image.evaluations_left * image.rows), image


def _best_of(
    ranked: Sequence[Weighed[C]], top: int, powers: tuple[float, float], costs: Costs, most: int
) -> tuple[list[C], float]:
    """Of one key's images those whose step has the highest value per second, and that value."""
    present = min(most, sum(image.rows for _, _, image in ranked))
    of_present, of_potential = powers
    chosen: list[C] = []
    best: tuple[int, float] = (0, -1.0)
    rows, value = 0, 0.0
    # A heap, for of thousands only the first few are taken; no two have one order, so images are never compared.
    entries = [
        (-rank[0], -rank[1], -worth if rank[0] >= top else -worth * CLASS_VALUE ** (top - rank[0]), image.order, image)
        for rank, worth, image in ranked
    ]
    heapify(entries)
    while entries and (not chosen or rows < most):
        _, _, negative, _, image = heappop(entries)
        if chosen and rows + image.rows > most:
            continue
        chosen.append(image)
        rows += image.rows
        value -= negative * image.rows
        efficiency = costs.efficiency(image.key, rows, max(rows, present)) ** of_present
        efficiency *= costs.efficiency(image.key, rows, most) ** of_potential
        rate = value / costs.step_seconds(image.key, rows) * efficiency
        if rate > best[1]:
            best = (len(chosen), rate)
    return chosen[: best[0]], best[1]
