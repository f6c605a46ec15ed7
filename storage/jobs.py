"""The life of a job in the database: every way in which it may change, and how jobs are found."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Integer, and_, cast, not_, or_, true, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from storage import admissions, client_keys, credits, outbox
from storage.database import Database
from storage.errors import JobEnded, JobNotFound
from storage.money import total
from storage.records import (
    ENGINE_LOST,
    ClientKey,
    JobRecord,
    JobStatus,
    NewImage,
    NewJob,
    Recovered,
    Terms,
)
from storage.tables import Image, Job
from storage.transitions import OPEN, end_all, hand_in, move
from storage.webhook_records import EventType

INTERRUPTED = "interrupted"
NOBODY = "The server stopped before the job was done, and its client waited for the answer."
EACH_TIME = "The server stopped during each of the attempts at this job."


class JobStore:
    """Jobs by id. What a request can reach asks for the owner as well; the scheduler's own verbs do not."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, new: NewJob, key: ClientKey | None = None, terms: Terms | None = None) -> JobRecord:
        """Queue a job. It is on the disk when this returns.

        With a key that its client used before, the job of that time is returned as it stands, and costs nothing.
        Raises KeyReused when that was another request; LimitReached or NotEnoughCredit by the owner's terms.
        """
        async with self._database.write() as session:
            if key is not None and (known := await client_keys.job_of(session, new.owner_id, key)):
                return record_of(known)
            # The clock is read inside the transaction: whoever is written first is also the older one.
            job = Job(id=str(uuid4()), status=JobStatus.PENDING, created_at=datetime.now(UTC), **asdict(new))
            session.add(job)
            await session.flush()  # its row first: others refer to it
            await hand_in(session, job, terms)
            if key is not None:
                await client_keys.remember(session, job, key)
        return record_of(job)

    async def foresee(
        self, job: NewJob | JobRecord, key: ClientKey | None = None, terms: Terms | None = None
    ) -> JobRecord | None:
        """The job that a client's key stands for, if any. Raises what `insert` would, as things stand."""
        async with self._database.read() as session:
            if key is not None and (known := await client_keys.job_of(session, job.owner_id, key)):
                return record_of(known)
            if terms is not None:
                await admissions.check(session, job, terms)
            if terms is not None and terms.credits:
                await credits.check(session, job)
            return None

    async def start(self, job_id: str, boot_id: str) -> JobRecord:
        """Take a pending job into processing by this run of the server, which spends one of its attempts."""
        changes = {"boot_id": boot_id, "attempts": col(Job.attempts) + 1, "started_at": datetime.now(UTC)}
        async with self._database.write() as session:
            return record_of(await move(session, job_id, JobStatus.PROCESSING, changes))

    async def complete(
        self,
        job_id: str,
        boot_id: str,
        images: Sequence[NewImage],
        *,
        error_code: str | None = None,
        error_message: str | None = None,
        outcome: Mapping[str, Any] | None = None,
    ) -> JobRecord:
        """Write the images and the job's end as one: afterwards both are there, or neither.

        Fewer images than asked for are welcome, with the error that befell the others. `outcome` is kept as it is.
        Raises IllegalTransition when the job is not being processed by this run of the server.
        """
        changes = {
            "cost": total(image.cost for image in images),
            "error_code": error_code,
            "error_message": error_message,
            "outcome": None if outcome is None else dict(outcome),
            "finished_at": datetime.now(UTC),
        }
        async with self._database.write() as session:
            job = await move(session, job_id, JobStatus.COMPLETED, changes, boot_id=boot_id)
            rows = [_image(job, new) for new in images]
            session.add_all(rows)
            await outbox.tell(session, EventType.GENERATED, rows)
            if error_code is not None:
                await outbox.tell(session, EventType.FAILED, [job])
        return record_of(job)

    async def fail(self, job_id: str, code: str, message: str) -> JobRecord:
        changes = {"error_code": code, "error_message": message, "finished_at": datetime.now(UTC)}
        async with self._database.write() as session:
            return record_of(await move(session, job_id, JobStatus.FAILED, changes))

    async def postpone(
        self, job_id: str, due_at: datetime, code: str, message: str, *, spent: bool = True
    ) -> JobRecord:
        """Let a job that failed for a passing reason wait for its next attempt.

        The one it spent is given back where it was no fault of the job's.
        """
        changes = {"due_at": due_at, "error_code": code, "error_message": message, "boot_id": None, "started_at": None}
        if not spent:
            under_way = cast(col(Job.status) == JobStatus.PROCESSING, Integer)
            changes["attempts"] = col(Job.attempts) - under_way
        async with self._database.write() as session:
            return record_of(await move(session, job_id, JobStatus.PENDING, changes))

    async def retry(self, owner_id: str | None, job_id: str, terms: Terms | None = None) -> JobRecord:
        """Queue a job anew that failed or was cancelled, as if it had never been tried; nobody waits for it.

        Raises JobNotFound; IllegalTransition from any other status; LimitReached or NotEnoughCredit as `insert` does.
        """
        fresh = dict.fromkeys(("boot_id", "due_at", "error_code", "error_message", "started_at", "finished_at"))
        changes = fresh | {"attempts": 0, "losses": 0, "attached": False}
        async with self._database.write() as session:
            ended = (JobStatus.FAILED, JobStatus.CANCELLED)
            job = await move(session, job_id, JobStatus.PENDING, changes, owner_id=owner_id, sources=ended)
            await hand_in(session, job, terms)
        return record_of(job)

    async def change(
        self, owner_id: str | None, job_id: str, *, priority: int | None = None, to_front: bool = False
    ) -> JobRecord:
        """Give a job that has not ended another place in line. Raises JobNotFound; JobEnded."""
        async with self._database.write() as session:
            job = await _owned(session, owner_id, job_id)
            if job.status not in OPEN:
                raise JobEnded(job_id, job.status)
            job.priority = job.priority if priority is None else priority
            job.moved_at = datetime.now(UTC) if to_front else job.moved_at
        return record_of(job)

    async def requeue(self, job_id: str, message: str, *, lost: bool) -> JobRecord:
        """Leave an open job to the next run of the server, and give back the attempt it spent, if it spent one.

        A job that was processing when the engine was lost may be what broke it: that is counted, and the
        `max_attempts`-th time it fails.
        """
        marked = {"error_code": ENGINE_LOST, "error_message": message} if lost else {}
        async with self._database.write() as session:
            found = await session.exec(select(Job.status, Job.losses, Job.max_attempts).where(Job.id == job_id))
            status, losses, most = found.one_or_none() or (None, 0, 1)
            under_way = status is JobStatus.PROCESSING
            losses += under_way and lost
            if losses >= most:
                return record_of(await move(session, job_id, JobStatus.FAILED, _given_up(losses)))
            returned = {
                "attached": False,
                "attempts": col(Job.attempts) - under_way,
                "losses": losses,
                "boot_id": None,
                "started_at": None,
            }
            return record_of(await move(session, job_id, JobStatus.PENDING, marked | returned))

    async def cancel(self, owner_id: str | None, job_id: str) -> JobRecord:
        """End an open job. Raises JobNotFound for another owner's job as well; no owner means anybody's."""
        changes = {"finished_at": datetime.now(UTC)}
        async with self._database.write() as session:
            return record_of(await move(session, job_id, JobStatus.CANCELLED, changes, owner_id=owner_id))

    async def clear(self, owner_id: str | None) -> list[str]:
        """Cancel every pending job of an owner, or everybody's; their ids."""
        owned = true() if owner_id is None else col(Job.owner_id) == owner_id
        waiting = and_(col(Job.status) == JobStatus.PENDING, owned)
        changes = {"status": JobStatus.CANCELLED, "finished_at": datetime.now(UTC)}
        async with self._database.write() as session:
            return await end_all(session, waiting, changes)

    async def get(self, owner_id: str | None, job_id: str) -> JobRecord:
        """Raises JobNotFound for another owner's job as well; no owner means that whoever asks may see every job."""
        async with self._database.read() as session:
            return record_of(await _owned(session, owner_id, job_id))

    async def pending(self, *, suspect: bool | None = None) -> list[JobRecord]:
        """The jobs that wait, in the order in which they are due.

        A run of the server was at the suspect ones before: each may be what ended that run.
        Highest priority first, within it what was moved to the front last, then the oldest.
        """
        waiting = select(Job).where(Job.status == JobStatus.PENDING)
        if suspect is not None:
            tried = or_(col(Job.losses) > 0, col(Job.attempts) > 0)
            waiting = waiting.where(tried if suspect else not_(tried))
        front = col(Job.moved_at).desc().nulls_last()
        queue_order = (col(Job.priority).desc(), front, col(Job.created_at), col(Job.id))
        async with self._database.read() as session:
            found = await session.exec(waiting.order_by(*queue_order))
            return [record_of(job) for job in found]

    async def recover(self, boot_id: str) -> Recovered:
        """Settle what dead runs left open.

        A job whose client waited fails, since that client went with the run; so does one whose attempts are spent. What
        was being processed is queued again.
        """
        left_open = and_(col(Job.status).in_(OPEN), col(Job.boot_id).is_distinct_from(boot_id))
        left_behind = and_(col(Job.status) == JobStatus.PROCESSING, col(Job.boot_id) != boot_id)
        spent = col(Job.attempts) >= col(Job.max_attempts)
        requeued = {"status": JobStatus.PENDING, "boot_id": None, "started_at": None}
        async with self._database.write() as session:
            failed = await end_all(session, and_(left_open, col(Job.attached)), _interrupted(NOBODY))
            failed += await end_all(session, and_(left_behind, spent), _interrupted(EACH_TIME))
            returns = await session.exec(update(Job).where(left_behind).values(requeued))
        return Recovered(requeued=returns.rowcount, failed=len(failed))


async def _owned(session: AsyncSession, owner_id: str | None, job_id: str) -> Job:
    statement = select(Job).where(Job.id == job_id)
    if owner_id is not None:
        statement = statement.where(Job.owner_id == owner_id)
    job = (await session.exec(statement)).one_or_none()
    if job is None:
        raise JobNotFound(job_id)
    return job


def _interrupted(message: str) -> dict[str, Any]:
    ended = {"error_code": INTERRUPTED, "error_message": message, "finished_at": datetime.now(UTC)}
    return {"status": JobStatus.FAILED} | ended


def _given_up(losses: int) -> dict[str, Any]:
    message = f"The engine was lost each of the {losses} times that this job was processed."
    return {"losses": losses, "error_code": ENGINE_LOST, "error_message": message, "finished_at": datetime.now(UTC)}


def record_of(job: Job) -> JobRecord:
    """A row as the rest of the program sees it."""
    return JobRecord(**job.model_dump())


def _image(job: Job, new: NewImage) -> Image:
    return Image(job_id=job.id, owner_id=job.owner_id, session_id=job.session_id, public=job.public, **asdict(new))
