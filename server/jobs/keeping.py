"""Keeping pictures: encoded and saved before their rows exist, deleted when they never will. For worker threads."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from uuid import uuid4

from pipelines.infotext import metadata
from pipelines.request import ImageRequest
from server.jobs.orders import Order
from server.scheduling.queue import Picture
from storage.encoding import encode
from storage.files import MediaFiles
from storage.media import MediaName
from storage.records import NewImage
from storage.thumbnails import make_thumbnail


@dataclass(frozen=True)
class Kept:
    """One picture whose files are on disk, and whose row is not yet."""

    image: NewImage
    picture: Picture


def keep(
    files: MediaFiles, order: Order, index: int, request: ImageRequest, picture: Picture, model_hash: str | None
) -> Kept:
    """Encode one picture of an order and put its files on disk."""
    image_id, created_at = str(uuid4()), datetime.now(UTC)
    text = metadata(request, order.entry, model_hash)
    encoded = encode(picture.image, order.format, text, order.compression)
    stored = files.save(image_id, created_at, encoded, make_thumbnail(picture.image), order.format)
    settled = asdict(request)
    further = {name: settled.pop(name) for name in ("clip_skip", "skip_guidance", "deterministic")}
    image = NewImage(
        id=image_id,
        index=index,
        family=order.entry.family,
        model_hash=model_hash,
        negative_prompt=settled.pop("negative_prompt") or "",
        parameters=order.notes | further,
        format=order.format,
        byte_count=stored.byte_count,
        sha256=stored.sha256,
        generation_seconds=picture.seconds,
        cost=order.costs[index],
        created_at=created_at,
        **settled,
    )
    return Kept(image, picture)


def discard(files: MediaFiles, image: NewImage) -> None:
    """Delete a picture's files, once it is sure that no row will name them."""
    files.delete(MediaName.of_image(image.id, image.created_at, image.format))
    files.delete(MediaName.of_thumbnail(image.id, image.created_at))
