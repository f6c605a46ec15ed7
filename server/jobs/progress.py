"""How far jobs are, in the words that their clients read."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic

from server.identity.links import Links
from server.jobs.facts import JobFacts, JobRow, JobState, QueuedJob
from server.jobs.jobs import Jobs
from server.jobs.runs import Run
from server.overview import Overview
from server.playground import image_facts, iso
from server.scheduling.loop import Scheduler
from server.scheduling.queue import Stage, Ticket
from storage.records import JobRecord, JobStatus


class Progress:
    """Looks at jobs, from their rows and, while they are under way, from their images in line."""

    def __init__(self, jobs: Jobs, scheduler: Scheduler, overview: Overview, links: Links) -> None:
        self._jobs = jobs
        self._scheduler = scheduler
        self._overview = overview
        self._links = links

    async def one(self, job: JobRecord) -> JobFacts:
        """The facts of one job."""
        return (await self.of([job]))[0]

    async def of(self, jobs: Sequence[JobRecord]) -> list[JobFacts]:
        """The facts of several."""
        done = [job.id for job in jobs if job.status is JobStatus.COMPLETED]
        images = await self._jobs.images.of_jobs(done)
        return [
            {
                **state,
                **_row(job),
                "resultImages": [image_facts(image, self._links) for image in images.get(job.id, [])],
                "error": {"code": job.error_code, "message": job.error_message} if job.error_code else None,
            }
            for job, state in zip(jobs, self._states(jobs), strict=True)
        ]

    def in_queue(self, jobs: Sequence[JobRecord]) -> list[QueuedJob]:
        """The facts of jobs for those who run the queue."""
        return [
            {
                **state,
                "owner": job.owner_id,
                "model": job.model,
                "imageCount": job.image_count,
                "priority": job.priority,
                "createdAt": iso(job.created_at),
            }
            for job, state in zip(jobs, self._states(jobs), strict=True)
        ]

    def _states(self, jobs: Sequence[JobRecord]) -> list[JobState]:
        places, ends = _places(self._jobs.waiting), self._overview.ends()
        return [self._state(job, places, ends) for job in jobs]

    def _state(self, job: JobRecord, places: Mapping[str, int], ends: Mapping[int, float]) -> JobState:
        run = self._jobs.find(job.id) if job.finished_at is None else None
        left = self._left(run, ends)
        return {
            "id": job.id,
            "jobId": job.id,
            "status": job.status,
            "progress": _progress(job, run),
            "currentStep": self._step(job, run),
            "queuePosition": places.get(job.id),
            "estimatedTimeRemaining": None if left is None else round(left, 3),
            "estimatedCompletion": None if left is None else iso(datetime.now(UTC) + timedelta(seconds=left)),
            "attempts": job.attempts,
            "maxAttempts": job.max_attempts,
        }

    def _left(self, run: Run | None, ends: Mapping[int, float]) -> float | None:
        """Seconds until all of a job's images will be done, where that can be told."""
        if run is None or not run.tickets or (self._scheduler.pauses and not run.at_work):
            return None
        promised = run.began + run.promised  # of one that has come since the last forecast
        known = [ends.get(ticket.order, promised) for ticket in run.tickets if ticket.live]
        return max(0.0, max(known, default=0.0) - monotonic())

    def _step(self, job: JobRecord, run: Run | None) -> str:
        """What is being done, in words."""
        if job.finished_at is not None:
            return str(job.status)
        if _ending(job, run):
            return "saving"
        if run is None or not run.tickets:
            return "waiting for the next attempt" if job.attempts or job.due_at else "waiting in queue"
        if not run.at_work or job.status is JobStatus.PENDING:
            return next(iter(self._scheduler.pauses), None) or self._waiting(run)
        return _at_work(run.tickets)

    def _waiting(self, run: Run) -> str:
        loading = self._scheduler.models.loading
        if loading is not None and loading.model == run.order.entry.name:
            return f"loading the model: {loading.stage} {loading.share:.0%}"
        return "waiting in queue"


def _places(waiting: Sequence[JobRecord]) -> dict[str, int]:
    """The place in line of each of these jobs, from 1: in the order in which they are due, were all of a size."""

    def due(job: JobRecord) -> tuple[int, float, datetime]:
        return -job.priority, -job.moved_at.timestamp() if job.moved_at else 0.0, job.created_at

    return {job.id: place for place, job in enumerate(sorted(waiting, key=due), start=1)}


def _ending(job: JobRecord, run: Run | None) -> bool:
    """Whether a job has come to its end since its row was read."""
    return run is None and job.status is JobStatus.PROCESSING


def _progress(job: JobRecord, run: Run | None) -> float:
    """Percent of a job's steps that are done; 100 only once its pictures are kept."""
    if job.status is JobStatus.COMPLETED:
        return 100.0
    if _ending(job, run):
        return 99.0
    if run is None or not run.tickets:
        return 0.0
    shares = [1.0 if not ticket.live else ticket.step / ticket.request.steps for ticket in run.tickets]
    return min(99.0, round(100 * sum(shares) / len(shares), 1))


def _at_work(tickets: Sequence[Ticket]) -> str:
    """The step of the image that is furthest, and how many others are done."""
    live = [ticket for ticket in tickets if ticket.live]
    done = f" ({len(tickets) - len(live)} of {len(tickets)} done)" if len(tickets) > 1 else ""
    if not live:
        return "saving"
    front = max(live, key=lambda ticket: ticket.step / ticket.request.steps)
    if front.stage is Stage.DECODING:
        return f"decoding{done}"
    return f"denoising {front.step}/{front.request.steps}{done}"


def _row(job: JobRecord) -> JobRow:
    """What the row alone says."""
    return {
        "prompt": job.prompt,
        "negativePrompt": job.negative_prompt,
        "model": job.model,
        "imageCount": job.image_count,
        "priority": job.priority,
        "sessionId": job.session_id,
        "expectedCost": job.expected_cost,
        "cost": job.cost,
        "public": job.public,
        "createdAt": iso(job.created_at),
        "startedAt": None if job.started_at is None else iso(job.started_at),
        "finishedAt": None if job.finished_at is None else iso(job.finished_at),
        "dueAt": None if job.due_at is None or job.finished_at is not None else iso(job.due_at),
    }
