"""What a follower of jobs receives: the present state first, then what changes, with previews if it wants them."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TypedDict

from pipelines.errors import PipelineError
from server.jobs.events import ENDS, MOST_A_SECOND, Events, EventType, Follower
from server.jobs.facts import JobFacts
from server.jobs.jobs import Jobs
from server.jobs.progress import Progress
from server.scheduling.previews import Previews
from server.scheduling.queue import Stage
from storage.encoding import encode
from storage.media import ImageFormat
from storage.records import JobQuery, JobRecord
from storage.transitions import OPEN

KEEP_ALIVE_SECONDS = 15.0
PREVIEW_SECONDS = 1.0
MOST_JOBS = 1000
"""Of which the state is told to one who follows all: as many as may be in line by default."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Preview(TypedDict):
    """What one image of a job looks like by now."""

    id: str
    jobId: str
    imageIndex: int
    b64_json: str
    mediaType: str


@dataclass(frozen=True)
class Told:
    """One event. `id` is a moment: with it, a reader who was cut off hears what ended since."""

    type: EventType
    id: str
    data: JobFacts | Preview


class Feed:
    """Serves followers. Used on the event loop alone."""

    def __init__(self, jobs: Jobs, events: Events, progress: Progress, previews: Previews) -> None:
        self._jobs = jobs
        self._events = events
        self._progress = progress
        self._previews = previews

    async def follow(
        self, owner_id: str | None, job_id: str | None = None, *, since: str | None = None, previews: bool = False
    ) -> AsyncIterator[Told | None]:
        """Events of an owner's jobs, or of one of them until it ends; None now and then, when there is nothing to tell.

        Args:
            since: the id of the last event that was received.
        """
        shown: dict[str, float] = {}
        with self._events.follow(owner_id, job_id) as follower:
            changed: Collection[str] | None = await self._present(owner_id, job_id, since)
            while changed is not None:
                now = str((datetime.now(UTC) - EPOCH) // timedelta(microseconds=1))
                jobs = await self._look(owner_id, changed)
                for told in await self._tell(follower, jobs, now):
                    yield told
                    if told.type in ENDS and job_id is not None:
                        return
                for job in jobs if previews else ():
                    if (preview := await self._preview(job, shown)) is not None:
                        yield Told(EventType.PREVIEW, now, preview)
                if not changed:
                    yield None
                await asyncio.sleep(1 / MOST_A_SECOND)
                changed = await follower.next(KEEP_ALIVE_SECONDS)

    async def _present(self, owner_id: str | None, job_id: str | None, since: str | None) -> list[str]:
        """The jobs whose state is told first: those that are open, and those that ended since."""
        if job_id is not None:
            return [job_id]
        page = await self._jobs.lists.page(JobQuery(owner_id=owner_id, statuses=tuple(OPEN), limit=MOST_JOBS))
        ended = await self._jobs.lists.ended_since(owner_id, _moment(since), MOST_JOBS) if since else []
        return [job.id for job in (*ended, *reversed(page.jobs))]

    async def _look(self, owner_id: str | None, job_ids: Collection[str]) -> list[JobRecord]:
        """How some jobs stand; of those under way this is known without the database."""
        here = {job_id: run.job for job_id in job_ids if (run := self._jobs.find(job_id))}
        elsewhere = await self._jobs.lists.some(owner_id, [job_id for job_id in job_ids if job_id not in here])
        found = [(here | elsewhere).get(job_id) for job_id in job_ids]
        return [job for job in found if job is not None and owner_id in (None, job.owner_id)]

    async def _tell(self, follower: Follower, jobs: Sequence[JobRecord], now: str) -> list[Told]:
        return [Told(follower.event(facts), now, facts) for facts in await self._progress.of(jobs)]

    async def _preview(self, job: JobRecord, shown: dict[str, float]) -> Preview | None:
        """What the first unfinished image of a job looks like by now, at most once in PREVIEW_SECONDS."""
        run = self._jobs.find(job.id)
        at_work = [ticket for ticket in run.tickets if ticket.live and ticket.stage is Stage.DENOISING] if run else []
        if not at_work or run is None or monotonic() - shown.get(job.id, 0.0) < PREVIEW_SECONDS:
            return None
        try:
            image = await self._previews.of(at_work[0])
        except PipelineError:
            return None
        if image is None:
            return None
        shown[job.id] = monotonic()
        content = await asyncio.to_thread(encode, image, ImageFormat.WEBP, {})
        return {
            "id": job.id,
            "jobId": job.id,
            "imageIndex": run.tickets.index(at_work[0]),
            "b64_json": b64encode(content).decode("ascii"),
            "mediaType": "image/webp",
        }


def _moment(since: str) -> datetime:
    """The moment of an event's id; of what is none, the present, so that nothing is told twice."""
    try:
        return EPOCH + timedelta(microseconds=int(since))
    except (ValueError, OverflowError):
        return datetime.now(UTC)
