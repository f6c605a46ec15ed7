"""Where a job's status changes, and with it, in the same transaction, all that hangs on it: ledger, counts, events."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, and_, true, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from storage import admissions, credits, outbox
from storage.errors import IllegalTransition, JobNotFound
from storage.records import JobStatus, Terms
from storage.tables import Job
from storage.webhook_records import EventType

TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset({JobStatus.PENDING, JobStatus.PROCESSING, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.PROCESSING: frozenset({JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.PENDING}),
    JobStatus.CANCELLED: frozenset({JobStatus.PENDING}),
}
"""What may follow what. A job that is tried again, by itself or because its owner asks, is pending anew."""

OPEN = frozenset({JobStatus.PENDING, JobStatus.PROCESSING})


async def move(
    session: AsyncSession,
    job_id: str,
    target: JobStatus,
    changes: Mapping[str, Any],
    *,
    owner_id: str | None = None,
    boot_id: str | None = None,
    sources: Collection[JobStatus] = OPEN,
) -> Job:
    """Send one job to another status, in one statement that finds it only where it may be sent from."""
    sources = [source for source in sources if target in TRANSITIONS[source]]
    named = and_(col(Job.id) == job_id, true() if owner_id is None else col(Job.owner_id) == owner_id)
    allowed = and_(col(Job.status).in_(sources), true() if boot_id is None else col(Job.boot_id) == boot_id)
    changed = await session.exec(update(Job).where(named, allowed).values(status=target, **changes))
    job = (await session.exec(select(Job).where(named))).one_or_none()
    if job is None:
        raise JobNotFound(job_id)
    if changed.rowcount == 0:
        raise IllegalTransition(job_id, job.status, target)
    if target not in OPEN:
        await credits.close(session, job)
    if target in (JobStatus.FAILED, JobStatus.CANCELLED):
        await outbox.tell(session, EventType.FAILED, [job])
    return job


async def end_all(session: AsyncSession, matching: ColumnElement[bool], changes: Mapping[str, Any]) -> list[str]:
    """Send all jobs that match to the end that the changes say; their ids."""
    ids = list(await session.exec(select(Job.id).where(matching)))
    dear = list(await session.exec(select(Job.id).where(matching, col(Job.expected_cost) > 0)))
    await session.exec(update(Job).where(matching).values(changes))
    for job_id in dear:
        await credits.close(session, (await session.exec(select(Job).where(Job.id == job_id))).one())
    await outbox.tell_failed(session, ids)
    return ids


async def hand_in(session: AsyncSession, job: Job, terms: Terms | None) -> None:
    """Count a job among what its owner handed in, and reserve what it is expected to cost."""
    if terms is not None:
        await admissions.admit(session, job, terms)
    if terms is not None and terms.credits:
        await credits.reserve(session, job)
