"""Which images are begun, which ride the next step, which are decoded together. Pure functions of what there is."""

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from pipelines.request import BatchKey

DECODE_PIXELS = 4 * 1024 * 1024
"""Pixels decoded together: the VAE's memory grows with them, and past this its speed does not."""

BATCHES_PER_KEY = 2
"""How far ahead of the device one key is begun, so that an image is ready whenever rows fall free."""

BATCHES_IN_ALL = 4
"""The same over all keys: each begun image keeps its conditioning and latents on the device."""


class Candidate(Protocol):
    """An image as the policy sees it."""

    @property
    def key(self) -> BatchKey: ...
    @property
    def rows(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def order(self) -> int: ...


C = TypeVar("C", bound=Candidate)


def ride(running: Sequence[C], served: Mapping[BatchKey, int], max_rows: int) -> list[C]:
    """The batch of the next step: images of one key, at most `max_rows` rows (one image always fits).

    Among the images of the highest priority the key that was served longest ago has its turn, so no shape starves.

    Args:
        served: for each key the number of the turn it was served last, or of the turn it appeared.
    """
    if not running:
        return []
    top = max(image.priority for image in running)
    keys = {image.key for image in running if image.priority == top}
    turn = min(keys, key=lambda key: (served.get(key, 0), _first(running, key)))
    return _fit([image for image in _in_order(running) if image.key == turn], max_rows)


def admit(
    waiting: Sequence[C],
    running: Sequence[Candidate],
    *,
    max_rows: int,
    resident: Collection[str],
    busy: Collection[str],
    crowded_out: Collection[str],
) -> list[C]:
    """The waiting images to encode and begin now: of one model, those that could ride soon.

    Images are begun `BATCHES_PER_KEY` and `BATCHES_IN_ALL` ahead of the device; the rest keep no memory there. Only
    the rows that would ride no later count, those of the image's own priority or a higher one, so nobody urgent
    waits for what it will overtake. Once the next in line needs a model for which there is no room, nobody behind
    it is begun: the busy models drain and the swap comes.

    Args:
        running: the images begun and not yet finished.
        resident: the models loaded now.
        busy: the models with images in flight.
        crowded_out: the models that could not be loaded while the busy ones stay.
    """
    ahead: Counter[BatchKey] = Counter()
    lesser = deque(_in_order(running))
    chosen: list[C] = []
    for image in _in_order(waiting):
        while lesser and lesser[0].priority >= image.priority:
            begun = lesser.popleft()
            ahead[begun.key] += begun.rows
        if ahead.total() >= BATCHES_IN_ALL * max_rows:
            break
        if ahead[image.key] >= BATCHES_PER_KEY * max_rows:
            continue
        if image.key.model in crowded_out and image.key.model not in resident and image.key.model not in busy:
            break
        if chosen and image.key.model != chosen[0].key.model:
            continue
        chosen.append(image)
        ahead[image.key] += image.rows
    return chosen


def decode(finished: Sequence[C]) -> list[C]:
    """The finished images to decode together: the first one's key, at most `DECODE_PIXELS` (one always fits)."""
    if not finished:
        return []
    key = finished[0].key
    count = max(1, DECODE_PIXELS // (key.width * key.height))
    return [image for image in finished if image.key == key][:count]


def _in_order(images: Sequence[C]) -> list[C]:
    return sorted(images, key=lambda image: (-image.priority, image.order))


def _first(images: Sequence[Candidate], key: BatchKey) -> int:
    return min(image.order for image in images if image.key == key)


def _fit(images: Sequence[C], max_rows: int) -> list[C]:
    chosen: list[C] = []
    rows = 0
    for image in images:
        if chosen and rows + image.rows > max_rows:
            continue
        chosen.append(image)
        rows += image.rows
    return chosen
