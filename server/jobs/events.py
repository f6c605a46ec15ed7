"""Who follows which jobs. A follower is told that something of a job changed, and looks for itself at what it is.

So a slow reader gets the newest state and skips those between, and what waits for it is at most one mark a job.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum

from server.jobs.facts import JobFacts
from storage.records import JobStatus

MOST_A_SECOND = 10
"""Looks of one follower: more than that nobody sees."""


class EventType(StrEnum):
    """What followers hear."""

    QUEUED = "queued"
    STARTED = "started"
    PROGRESS = "progress"
    PREVIEW = "preview"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


_BY_STATUS = {
    JobStatus.PENDING: EventType.QUEUED,
    JobStatus.PROCESSING: EventType.STARTED,
    JobStatus.COMPLETED: EventType.COMPLETED,
    JobStatus.FAILED: EventType.FAILED,
    JobStatus.CANCELLED: EventType.CANCELLED,
}
ENDS = frozenset({EventType.COMPLETED, EventType.FAILED, EventType.CANCELLED})


class Follower:
    """One who follows an owner's jobs, all or one of them. Used on the event loop alone."""

    def __init__(self, owner_id: str | None, job_id: str | None) -> None:
        self._owner_id = owner_id
        self._job_id = job_id
        self._changed: dict[str, None] = {}
        self._told: dict[str, JobStatus] = {}
        self._waken = asyncio.Event()
        self._closed = False

    def hear(self, owner_id: str, job_id: str) -> None:
        """Something of this job changed."""
        if self._owner_id in (None, owner_id) and self._job_id in (None, job_id):
            self._changed[job_id] = None
            self._waken.set()

    def close(self) -> None:
        """There will be nothing more."""
        self._closed = True
        self._waken.set()

    async def next(self, patience: float) -> list[str] | None:
        """The jobs that changed since the last call, waited for; none after so many seconds, None after the end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._waken.wait()
        self._waken.clear()
        if self._closed:
            self._waken.set()
            return None
        changed = list(self._changed)
        self._changed.clear()
        return changed

    def event(self, facts: JobFacts) -> EventType:
        """What a job's present state is to this follower, given what it was told before."""
        status = JobStatus(facts["status"])
        before = self._told.get(facts["id"])
        self._told[facts["id"]] = status
        event = EventType.PROGRESS if before is status else _BY_STATUS[status]
        if event in ENDS:
            del self._told[facts["id"]]
        return event


class Events:
    """The followers of all jobs. Used on the event loop alone."""

    def __init__(self) -> None:
        self._followers = set[Follower]()
        self._closed = False

    @contextmanager
    def follow(self, owner_id: str | None, job_id: str | None = None) -> Iterator[Follower]:
        """Follow an owner's jobs, or everybody's; from now on, whatever is looked at later."""
        follower = Follower(owner_id, job_id)
        self._followers.add(follower)
        if self._closed:
            follower.close()
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    def changed(self, owner_id: str, job_id: str) -> None:
        """Something of a job can be told."""
        for follower in self._followers:
            follower.hear(owner_id, job_id)

    def close(self) -> None:
        """The server stops: every stream ends."""
        self._closed = True
        for follower in self._followers:
            follower.close()
