"""Finished images: history, ownership, deletion, and which files are still wanted."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from storage.database import Database
from storage.errors import ImageNotFound
from storage.images import ImageStore
from storage.media import ImageFormat
from tests.storage_fakes import finished_job, new_image, opened

pytestmark = pytest.mark.anyio


async def _history(database: Database, owner_id: str, page: int, per_page: int) -> tuple[list[str], int]:
    found = await ImageStore(database).history(owner_id, page, per_page)
    return [image.id for image in found.images], found.total


async def test_history_is_newest_first_in_pages_of_ones_own(tmp_path: Path) -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    twins = sorted((new_image(index=0, created_at=now), new_image(index=1, created_at=now)), key=lambda x: x.id)
    newer, older = (new_image(created_at=now + timedelta(microseconds=sign)) for sign in (1, -1))
    async with opened(tmp_path) as database:
        for images in ([older], twins, [newer]):
            await finished_job(database, *images)
        await finished_job(database, new_image(), owner_id="bob")
        expected = [newer.id, twins[1].id, twins[0].id, older.id]
        assert await _history(database, "ann", 1, 10) == (expected, 4)
        assert await _history(database, "ann", 1, 3) == (expected[:3], 4)
        assert await _history(database, "ann", 2, 3) == (expected[3:], 4)
        assert await _history(database, "ann", 3, 3) == ([], 4)
        assert await _history(database, "nobody", 1, 3) == ([], 0)


async def test_history_reads_the_index_and_does_not_sort(tmp_path: Path) -> None:
    async with opened(tmp_path) as database, database.read() as session:
        connection = await session.connection()
        plan = await connection.exec_driver_sql(
            "EXPLAIN QUERY PLAN SELECT * FROM images WHERE owner_id = 'ann' AND deleted_at IS NULL "
            "ORDER BY created_at DESC, id DESC LIMIT 20"
        )
        steps = [row[3] for row in plan]
    assert len(steps) == 1 and "ix_images_history" in steps[0]


async def test_another_owners_image_looks_like_no_image(tmp_path: Path) -> None:
    image = new_image()
    async with opened(tmp_path) as database:
        images = ImageStore(database)
        await finished_job(database, image)
        for ask in (images.get, images.delete):
            with pytest.raises(ImageNotFound, match=image.id):
                await ask("bob", image.id)
        with pytest.raises(ImageNotFound):
            await images.find_media(image.id, "bob")
        assert (await images.get("ann", image.id)).id == image.id
        assert (await images.find_media(image.id, "ann")).id == image.id
        assert (await images.find_media(image.id, None)).id == image.id


async def test_a_deleted_image_is_gone_for_everybody(tmp_path: Path) -> None:
    image, other = new_image(index=0), new_image(index=1)
    async with opened(tmp_path) as database:
        images = ImageStore(database)
        job_id = await finished_job(database, image, other)
        before = await images.get("ann", image.id)
        deleted = await images.delete("ann", image.id)
        assert deleted.deleted_at is not None and deleted.media_name == before.media_name
        for ask in (images.get, images.delete):
            with pytest.raises(ImageNotFound):
                await ask("ann", image.id)
        assert await _history(database, "ann", 1, 10) == ([other.id], 1)
        assert [left.id for left in await images.of_job("ann", job_id)] == [other.id]
        assert await images.known_ids({image.id, other.id, "unheard-of"}) == {other.id}


async def test_a_record_knows_its_files(tmp_path: Path) -> None:
    created_at = datetime(2026, 12, 31, 23, 30, tzinfo=timezone(timedelta(hours=-2)))
    image = new_image(created_at=created_at, format=ImageFormat.WEBP)
    async with opened(tmp_path) as database:
        await finished_job(database, image)
        record = await ImageStore(database).get("ann", image.id)
    assert record.created_at == created_at
    assert record.media_name.url_path == f"/media/generated_images/2027/01/{image.id}.webp"
    assert record.thumbnail_name.url_path == f"/media/thumbnails/2027/01/{image.id}.png"
