"""The life of a job in the database: every way in which it may change, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import and_, true, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from storage.database import Database
from storage.errors import IllegalTransition, JobNotFound
from storage.records import ENGINE_LOST, JobRecord, JobStatus, NewImage, NewJob, Recovered
from storage.tables import Image, Job

TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset({JobStatus.PENDING, JobStatus.PROCESSING, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.PROCESSING: frozenset({JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}

INTERRUPTED = "interrupted"


class JobStore:
    """Jobs by id. What a request can reach asks for the owner as well; the scheduler's own verbs do not."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, new: NewJob) -> JobRecord:
        """Queue a job. It is on the disk when this returns."""
        async with self._database.write() as session:
            # The clock is read inside the transaction: whoever is written first is also the older one.
            job = Job(id=str(uuid4()), status=JobStatus.PENDING, created_at=datetime.now(UTC), **asdict(new))
            session.add(job)
        return _record(job)

    async def start(self, job_id: str, boot_id: str) -> JobRecord:
        """Take a pending job into processing by this run of the server, which spends one of its attempts."""
        changes = {"boot_id": boot_id, "attempts": col(Job.attempts) + 1, "started_at": datetime.now(UTC)}
        async with self._database.write() as session:
            return _record(await _move(session, job_id, JobStatus.PROCESSING, changes))

    async def complete(
        self,
        job_id: str,
        boot_id: str,
        images: Sequence[NewImage],
        *,
        error_code: str | None = None,
        error_message: str | None = None,
    ) -> JobRecord:
        """Write the images and the job's end as one: afterwards both are there, or neither.

        Fewer images than asked for are welcome, with the error that befell the others.
        Raises IllegalTransition when the job is not being processed by this run of the server.
        """
        changes = {
            "cost": sum(image.cost for image in images),
            "error_code": error_code,
            "error_message": error_message,
            "finished_at": datetime.now(UTC),
        }
        async with self._database.write() as session:
            job = await _move(session, job_id, JobStatus.COMPLETED, changes, boot_id=boot_id)
            session.add_all(_image(job, new) for new in images)
        return _record(job)

    async def fail(self, job_id: str, code: str, message: str) -> JobRecord:
        changes = {"error_code": code, "error_message": message, "finished_at": datetime.now(UTC)}
        async with self._database.write() as session:
            return _record(await _move(session, job_id, JobStatus.FAILED, changes))

    async def requeue(self, job_id: str, message: str, *, lost: bool) -> JobRecord:
        """Leave an open job to the next run of the server, and give back the attempt it spent, if it spent one.

        A job that was processing when the engine was lost may be what broke it: that is counted, and the
        `max_attempts`-th time it fails.
        """
        marked = {"error_code": ENGINE_LOST, "error_message": message}
        async with self._database.write() as session:
            found = await session.exec(select(Job.status, Job.losses, Job.max_attempts).where(Job.id == job_id))
            status, losses, most = found.one_or_none() or (None, 0, 1)
            under_way = status is JobStatus.PROCESSING
            losses += under_way and lost
            if losses >= most:
                return _record(await _move(session, job_id, JobStatus.FAILED, _given_up(losses)))
            returned = {
                "attempts": col(Job.attempts) - under_way,
                "losses": losses,
                "boot_id": None,
                "started_at": None,
            }
            return _record(await _move(session, job_id, JobStatus.PENDING, marked | returned))

    async def cancel(self, owner_id: str, job_id: str) -> JobRecord:
        """Raises JobNotFound for another owner's job as well."""
        changes = {"finished_at": datetime.now(UTC)}
        async with self._database.write() as session:
            return _record(await _move(session, job_id, JobStatus.CANCELLED, changes, owner_id=owner_id))

    async def get(self, owner_id: str, job_id: str) -> JobRecord:
        async with self._database.read() as session:
            found = await session.exec(select(Job).where(Job.id == job_id, Job.owner_id == owner_id))
            job = found.one_or_none()
        if job is None:
            raise JobNotFound(job_id)
        return _record(job)

    async def pending(self) -> list[JobRecord]:
        """Every job that waits, in the order in which they are due: highest priority first, then oldest."""
        waiting = select(Job).where(Job.status == JobStatus.PENDING)
        queue_order = (col(Job.priority).desc(), col(Job.created_at), col(Job.id))
        async with self._database.read() as session:
            found = await session.exec(waiting.order_by(*queue_order))
            return [_record(job) for job in found]

    async def recover(self, boot_id: str) -> Recovered:
        """Settle what dead runs left in processing: queue it again, or fail it if its attempts are spent."""
        left_behind = (col(Job.status) == JobStatus.PROCESSING, col(Job.boot_id) != boot_id)
        spent = col(Job.attempts) >= col(Job.max_attempts)
        failed = {
            "status": JobStatus.FAILED,
            "error_code": INTERRUPTED,
            "error_message": "The server stopped during each of the attempts at this job.",
            "finished_at": datetime.now(UTC),
        }
        requeued = {"status": JobStatus.PENDING, "boot_id": None, "started_at": None}
        async with self._database.write() as session:
            failures = await session.exec(update(Job).where(*left_behind, spent).values(failed))
            returns = await session.exec(update(Job).where(*left_behind).values(requeued))
        return Recovered(requeued=returns.rowcount, failed=failures.rowcount)


async def _move(
    session: AsyncSession,
    job_id: str,
    target: JobStatus,
    changes: Mapping[str, Any],
    *,
    owner_id: str | None = None,
    boot_id: str | None = None,
) -> Job:
    """Send one job to another status, in one statement that finds it only where it may be sent from."""
    sources = [source for source, targets in TRANSITIONS.items() if target in targets]
    named = and_(col(Job.id) == job_id, true() if owner_id is None else col(Job.owner_id) == owner_id)
    allowed = and_(col(Job.status).in_(sources), true() if boot_id is None else col(Job.boot_id) == boot_id)
    changed = await session.exec(update(Job).where(named, allowed).values(status=target, **changes))
    job = (await session.exec(select(Job).where(named))).one_or_none()
    if job is None:
        raise JobNotFound(job_id)
    if changed.rowcount == 0:
        raise IllegalTransition(job_id, job.status, target)
    return job


def _given_up(losses: int) -> dict[str, Any]:
    message = f"The engine was lost each of the {losses} times that this job was processed."
    return {"losses": losses, "error_code": ENGINE_LOST, "error_message": message, "finished_at": datetime.now(UTC)}


def _record(job: Job) -> JobRecord:
    return JobRecord(**job.model_dump())


def _image(job: Job, new: NewImage) -> Image:
    return Image(job_id=job.id, owner_id=job.owner_id, session_id=job.session_id, **asdict(new))
