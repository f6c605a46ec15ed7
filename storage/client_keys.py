"""Clients' own keys for requests that they may send twice: remembered for a day, and never for another request."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import delete
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from storage.errors import KeyReused
from storage.records import ClientKey
from storage.tables import Job, KnownKey

REMEMBERED = timedelta(hours=24)


async def job_of(session: AsyncSession, owner_id: str, key: ClientKey) -> Job | None:
    """The job that this key stands for, if any.

    Raises KeyReused when it stands for a request with another digest.
    """
    since = datetime.now(UTC) - REMEMBERED
    statement = select(KnownKey.digest, Job).join(Job, col(Job.id) == col(KnownKey.job_id))
    owned = (KnownKey.owner_id == owner_id, Job.owner_id == owner_id)
    named = (KnownKey.key == key.key, col(KnownKey.created_at) > since)
    found = (await session.exec(statement.where(*owned, *named))).one_or_none()
    if found is None:
        return None
    digest, job = found
    if digest != key.digest:
        raise KeyReused(key.told or f"The key {key.key[:80]!r}", job.id)
    return job


async def remember(session: AsyncSession, job: Job, key: ClientKey) -> None:
    """Let the key stand for the job, whose row is there, and forget what is too old."""
    await session.exec(delete(KnownKey).where(col(KnownKey.created_at) <= datetime.now(UTC) - REMEMBERED))
    session.add(
        KnownKey(owner_id=job.owner_id, key=key.key, digest=key.digest, job_id=job.id, created_at=job.created_at)
    )
