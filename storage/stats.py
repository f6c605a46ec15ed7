"""What an owner's jobs and images come to: counts, seconds and cost, in all, by model and by day."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Integer, distinct, type_coerce
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from storage.database import Database
from storage.records import JobStatus
from storage.tables import Image, Job

DAY_MICROSECONDS = 86_400_000_000
PERCENTILES = (50, 95, 99)
FIGURES = (
    func.count(col(Image.id)),
    func.coalesce(func.sum(Image.cost), 0.0),
    func.coalesce(func.sum(Image.generation_seconds), 0.0),
    func.coalesce(func.sum(col(Image.width) * col(Image.height) * col(Image.steps)), 0),
)
"""Of images: how many, their cost, their seconds and their pixels times steps."""


@dataclass(frozen=True)
class Seconds:
    """How long images took from their first work to their last; all None where there is none."""

    mean: float | None
    percentiles: dict[int, float | None]


@dataclass(frozen=True)
class Totals:
    """Some jobs and the images made of them; deleted images were made as well."""

    jobs: dict[JobStatus, int]
    images: int
    cost: float
    device_seconds: float
    pixel_steps: int
    seconds: Seconds

    @property
    def success_rate(self) -> float | None:
        """Of the jobs that came to an end by themselves, the share that was completed."""
        done, failed = self.jobs.get(JobStatus.COMPLETED, 0), self.jobs.get(JobStatus.FAILED, 0)
        return done / (done + failed) if done + failed else None


@dataclass(frozen=True)
class Day:
    """What was made on one day, in UTC."""

    date: date
    images: int
    cost: float


@dataclass(frozen=True)
class Share:
    """What one owner's jobs, or those sent with one key, came to; `name` is None for those sent without a key."""

    name: str | None
    jobs: int
    images: int
    cost: float
    device_seconds: float
    pixel_steps: int


class Stats:
    """Figures since a moment. Where the owner is None, everybody's are meant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def totals(self, owner_id: str | None, since: datetime, model: str | None = None) -> Totals:
        """All of them, or those of one model."""
        of_jobs = [col(Job.created_at) >= since, *_where(Job, owner_id, model)]
        of_images = [col(Image.created_at) >= since, *_where(Image, owner_id, model)]
        async with self._database.read() as session:
            statuses = await session.exec(select(Job.status, func.count()).where(*of_jobs).group_by(Job.status))
            jobs = {JobStatus(status): count for status, count in statuses}
            images, cost, seconds, work = (await session.exec(select(*FIGURES).where(*of_images))).one()
            found = await _seconds(session, of_images, images, seconds)
        return Totals(jobs, images, cost, seconds, work, found)

    async def models(self, owner_id: str | None, since: datetime) -> list[tuple[str, int]]:
        """The models with which images were made, and how many each; the one used most first."""
        made = select(Image.model, func.count()).where(col(Image.created_at) >= since, *_where(Image, owner_id, None))
        async with self._database.read() as session:
            found = await session.exec(made.group_by(Image.model).order_by(func.count().desc(), col(Image.model)))
            return [(model, count) for model, count in found]

    async def days(self, owner_id: str | None, since: datetime) -> list[Day]:
        """Each day on which images were made, the earliest first."""
        day = (type_coerce(col(Image.created_at), Integer) // DAY_MICROSECONDS).label("day")
        made = select(day, func.count(), func.sum(Image.cost))
        made = made.where(col(Image.created_at) >= since, *_where(Image, owner_id, None)).group_by(day).order_by(day)
        async with self._database.read() as session:
            return [
                Day(datetime.fromtimestamp(number * 86_400, UTC).date(), images, cost)
                for number, images, cost in await session.exec(made)
            ]

    async def owners(self, since: datetime) -> list[Share]:
        """Everybody who handed a job in since then, by name."""
        return await self._shares(col(Job.owner_id), [col(Job.created_at) >= since])

    async def keys(self, owner_id: str, since: datetime) -> list[Share]:
        """The keys with which an owner handed jobs in since then, by id."""
        return await self._shares(col(Job.key_id), [col(Job.created_at) >= since, col(Job.owner_id) == owner_id])

    async def _shares(self, column: Any, matching: list[ColumnElement[bool]]) -> list[Share]:
        sums: list[Any] = [column, func.count(distinct(col(Job.id))), *FIGURES]
        shares = select(*sums).select_from(Job).join(Image, isouter=True).where(*matching)
        async with self._database.read() as session:
            return [Share(*row) for row in await session.exec(shares.group_by(column).order_by(column))]


def _where(table: type[Job] | type[Image], owner_id: str | None, model: str | None) -> list[ColumnElement[bool]]:
    given = [(col(table.owner_id), owner_id), (col(table.model), model)]
    return [column == value for column, value in given if value is not None]


async def _seconds(session: AsyncSession, matching: Sequence[ColumnElement[bool]], count: int, total: float) -> Seconds:
    """Percentiles by nearest rank, each read off the sorted column."""
    if not count:
        return Seconds(None, dict.fromkeys(PERCENTILES))
    found: dict[int, float | None] = {}
    for percent in PERCENTILES:
        rank = max(0, -(-percent * count // 100) - 1)
        ranked = select(Image.generation_seconds).where(*matching).order_by(col(Image.generation_seconds))
        found[percent] = (await session.exec(ranked.offset(rank).limit(1))).one()
    return Seconds(total / count, found)
