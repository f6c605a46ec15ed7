"""Finding jobs: pages of them, some by id, those that ended of late."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, tuple_
from sqlmodel import col, func, select

from storage.database import Database
from storage.errors import JobNotFound
from storage.jobs import record_of
from storage.records import JobPage, JobQuery, JobRecord
from storage.tables import Job

NEWEST_FIRST = (col(Job.created_at).desc(), col(Job.id).desc())


class JobLists:
    """Jobs in numbers. Where the owner is None, everybody's are meant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, wanted: JobQuery) -> JobPage:
        """A page of jobs, newest first. Raises JobNotFound for a cursor that is none of them."""
        matching = _matching(wanted)
        window = select(Job).where(*matching)
        async with self._database.read() as session:
            if wanted.cursor is not None:
                last = select(Job.created_at, Job.id).where(Job.id == wanted.cursor, *_owned(wanted.owner_id))
                place = (await session.exec(last)).one_or_none()
                if place is None:
                    raise JobNotFound(wanted.cursor)
                window = window.where(tuple_(col(Job.created_at), col(Job.id)) < tuple(place))
            total = (await session.exec(select(func.count()).select_from(Job).where(*matching))).one()
            # One more than a page, to know whether another follows.
            found = await session.exec(window.order_by(*NEWEST_FIRST).limit(wanted.limit + 1))
            jobs = [record_of(job) for job in found]
        page = jobs[: wanted.limit]
        return JobPage(page, total, page[-1].id if len(jobs) > wanted.limit else None)

    async def some(self, owner_id: str | None, job_ids: Collection[str]) -> dict[str, JobRecord]:
        """Those of `job_ids` (a thousand at most) that are there, by id."""
        statement = select(Job).where(col(Job.id).in_(job_ids), *_owned(owner_id))
        async with self._database.read() as session:
            return {job.id: record_of(job) for job in await session.exec(statement)}

    async def ended_since(self, owner_id: str | None, moment: datetime, limit: int) -> list[JobRecord]:
        """The jobs that ended at that moment or later, the latest `limit` of them, the earliest first."""
        ended = select(Job).where(col(Job.finished_at) >= moment, *_owned(owner_id))
        async with self._database.read() as session:
            found = await session.exec(ended.order_by(col(Job.finished_at).desc()).limit(limit))
            return [record_of(job) for job in found][::-1]


def _owned(owner_id: str | None) -> list[ColumnElement[bool]]:
    return [] if owner_id is None else [col(Job.owner_id) == owner_id]


def _matching(wanted: JobQuery) -> list[ColumnElement[bool]]:
    conditions = _owned(wanted.owner_id)
    if wanted.session_id is not None:
        conditions.append(col(Job.session_id) == wanted.session_id)
    if wanted.key_id is not None:
        conditions.append(col(Job.key_id) == wanted.key_id)
    if wanted.statuses:
        conditions.append(col(Job.status).in_(wanted.statuses))
    return conditions
