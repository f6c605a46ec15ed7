"""What owners handed in within the last hour, and whether they may hand in more: counted in the job's own transaction.

The hour is a sliding one: what was handed in leaves it exactly 60 minutes later, whether the server ran or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil, inf

from sqlalchemy import delete
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from storage.database import Database
from storage.errors import LimitReached
from storage.records import JobRecord, JobStatus, NewJob, Terms
from storage.tables import Admission, Job

HOUR = timedelta(hours=1)

Taken = Sequence[tuple[datetime, int]]
"""When something was handed in and how much of a bound it takes, the earliest first."""


@dataclass(frozen=True)
class Standing:
    """What an owner handed in within the last hour, how many of its jobs wait, and when the hour will be empty."""

    requests: int
    pixel_steps: int
    queued: int
    clear_at: datetime | None


class Admissions:
    """For those who want to know how near an owner is to its bounds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def standing(self, owner_id: str) -> Standing:
        async with self._database.read() as session:
            taken = await _taken(session, owner_id, datetime.now(UTC))
            queued = await _queued(session, owner_id, besides="")
        clear_at = taken[-1][0] + HOUR if taken else None
        return Standing(len(taken), sum(work for _, work in taken), queued, clear_at)


async def admit(session: AsyncSession, job: Job, terms: Terms) -> None:
    """Count a job that is handed in, for the first time or anew. Raises what `check` does."""
    await check(session, job, terms, besides=job.id)
    now = datetime.now(UTC)
    await session.exec(delete(Admission).where(col(Admission.created_at) <= now - HOUR))
    session.add(Admission(owner_id=job.owner_id, pixel_steps=job.pixel_steps, created_at=now))


async def check(session: AsyncSession, job: Job | NewJob | JobRecord, terms: Terms, besides: str = "") -> None:
    """Raise LimitReached if the owner of a job may not hand it in now.

    Args:
        besides: a job that is not counted among those that wait: this one, where its row is there already.
    """
    if terms.queued and await _queued(session, job.owner_id, besides) >= terms.queued:
        waiting = f"{terms.queued} of your jobs wait already, and no more may"
        raise LimitReached(f"{waiting}. Try again once some are begun, or cancel some.", terms.patience)
    now = datetime.now(UTC)
    taken = await _taken(session, job.owner_id, now)
    _check_hour([(moment, 1) for moment, _ in taken], terms.requests, 1, now, "requests")
    _check_hour(taken, terms.pixel_steps, job.pixel_steps, now, "pixel steps (width x height x steps x pictures)")


def _check_hour(taken: Taken, most: int, asked: int, now: datetime, what: str) -> None:
    """Raise LimitReached if so much more does not fit into the present hour."""
    seconds = wait(taken, most, asked, now) if most else 0.0
    if seconds == inf:
        raise LimitReached(
            f"This request has {asked:,} {what}, and your limit is {most:,} an hour. Ask for less.", None
        )
    if seconds > 0:
        raise LimitReached(f"Your limit is {most:,} {what} an hour. Try again in {_in_words(seconds)}.", seconds)


def wait(taken: Taken, most: int, asked: int, now: datetime) -> float:
    """Seconds until so much more fits into an hour that holds at most `most`; infinite if it never will."""
    over = sum(amount for _, amount in taken) + asked - most
    if over <= 0:
        return 0.0
    for moment, amount in taken:
        over -= amount
        if over <= 0:
            return (moment + HOUR - now).total_seconds()
    return inf


async def _taken(session: AsyncSession, owner_id: str, now: datetime) -> list[tuple[datetime, int]]:
    mine = (Admission.owner_id == owner_id, col(Admission.created_at) > now - HOUR)
    found = await session.exec(select(Admission.created_at, Admission.pixel_steps).where(*mine).order_by(_AGE))
    return [(moment, pixel_steps) for moment, pixel_steps in found]


async def _queued(session: AsyncSession, owner_id: str, besides: str) -> int:
    waiting = (Job.owner_id == owner_id, Job.status == JobStatus.PENDING, Job.id != besides)
    return (await session.exec(select(func.count()).select_from(Job).where(*waiting))).one()


def _in_words(seconds: float) -> str:
    return f"{ceil(seconds)} seconds" if seconds <= 120 else f"{ceil(seconds / 60)} minutes"


_AGE = col(Admission.created_at)
