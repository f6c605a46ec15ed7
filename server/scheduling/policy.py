"""Which images are begun, which ride the next step, which are decoded together. Pure functions of what there is."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from pipelines.request import BatchKey

DECODE_PIXELS = 4 * 1024 * 1024
"""Pixels decoded together: the VAE's memory grows with them, and past this its speed does not."""


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
    room_for_model: bool,
) -> list[C]:
    """The waiting images to encode and begin now: of one model, those that could ride soon.

    A key's images are begun up to two batches ahead of the device, so that one is ready whenever rows fall free
    and the rest keep no memory. Once the next in line needs a model for which there is no room, nobody behind it
    is begun: the busy models drain and the swap comes.

    Args:
        resident: the models loaded now.
        busy: the models with images in flight.
        room_for_model: whether a model could be loaded while the busy ones stay.
    """
    begun: dict[BatchKey, int] = {}
    for image in running:
        begun[image.key] = begun.get(image.key, 0) + image.rows
    chosen: list[C] = []
    for image in _in_order(waiting):
        if begun.get(image.key, 0) >= 2 * max_rows:
            continue
        if image.key.model not in resident and image.key.model not in busy and not room_for_model:
            break
        if chosen and image.key.model != chosen[0].key.model:
            continue
        chosen.append(image)
        begun[image.key] = begun.get(image.key, 0) + image.rows
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
