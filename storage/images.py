"""Finished images: finding, listing and deleting them. The owner is part of every question."""

from collections.abc import Collection
from datetime import UTC, datetime

from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from storage import outbox
from storage.database import Database
from storage.errors import ImageNotFound
from storage.records import HistoryPage, ImageRecord
from storage.tables import Image
from storage.webhook_records import EventType

ALIVE = col(Image.deleted_at).is_(None)


class ImageStore:
    """Images that are not deleted; a deleted one does not exist here for anybody."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, owner_id: str, image_id: str) -> ImageRecord:
        """Raises ImageNotFound for another owner's image as well."""
        return await self.find_media(image_id, owner_id)

    async def find_media(self, image_id: str, owner_id: str | None) -> ImageRecord:
        """The image that a file belongs to. No owner means that whoever asks may see every picture."""
        async with self._database.read() as session:
            return _record(await _alive(session, image_id, owner_id))

    async def find_public(self, image_id: str) -> ImageRecord:
        """An image that everybody may see. Raises ImageNotFound."""
        image = await self.find_media(image_id, None)
        if not image.public:
            raise ImageNotFound(image_id)
        return image

    async def of_job(self, owner_id: str, job_id: str) -> list[ImageRecord]:
        """A job's images in the order of their index."""
        statement = select(Image).where(Image.job_id == job_id, Image.owner_id == owner_id, ALIVE)
        async with self._database.read() as session:
            found = await session.exec(statement.order_by(col(Image.index)))
            return [_record(image) for image in found]

    async def of_jobs(self, job_ids: Collection[str]) -> dict[str, list[ImageRecord]]:
        """The images of some jobs (a thousand at most) that the caller was shown, in the order of their index."""
        statement = select(Image).where(col(Image.job_id).in_(job_ids), ALIVE).order_by(col(Image.index))
        found: dict[str, list[ImageRecord]] = {}
        async with self._database.read() as session:
            for image in await session.exec(statement):
                found.setdefault(image.job_id, []).append(_record(image))
        return found

    async def history(self, owner_id: str, page: int, per_page: int, session_id: str | None = None) -> HistoryPage:
        """A page of the owner's images or of one session's, newest first. Pages count from 1; past the end is empty."""
        owned = [col(Image.owner_id) == owner_id, ALIVE]
        if session_id is not None:
            owned.append(col(Image.session_id) == session_id)
        newest_first = (col(Image.created_at).desc(), col(Image.id).desc())
        window = select(Image).where(*owned).order_by(*newest_first)
        window = window.offset((page - 1) * per_page).limit(per_page)
        async with self._database.read() as session:
            total = (await session.exec(select(func.count()).select_from(Image).where(*owned))).one()
            images = [_record(image) for image in await session.exec(window)]
        return HistoryPage(images, total)

    async def delete(self, owner_id: str, image_id: str) -> ImageRecord:
        """Mark the image as deleted, durably; only then may the caller remove its files.

        Should the caller die in between, the sweep removes them: they no longer belong to a known image.
        """
        async with self._database.write() as session:
            image = await _alive(session, image_id, owner_id)
            image.deleted_at = datetime.now(UTC)
            await outbox.tell(session, EventType.DELETED, [image])
        return _record(image)

    async def known_ids(self, image_ids: Collection[str]) -> set[str]:
        """Those of `image_ids` (a few thousand at most) whose files are to be kept, whoever owns them."""
        async with self._database.read() as session:
            return set(await session.exec(select(Image.id).where(col(Image.id).in_(image_ids), ALIVE)))


async def _alive(session: AsyncSession, image_id: str, owner_id: str | None) -> Image:
    statement = select(Image).where(Image.id == image_id, ALIVE)
    if owner_id is not None:
        statement = statement.where(Image.owner_id == owner_id)
    image = (await session.exec(statement)).one_or_none()
    if image is None:
        raise ImageNotFound(image_id)
    return image


def _record(image: Image) -> ImageRecord:
    return ImageRecord(**image.model_dump())
