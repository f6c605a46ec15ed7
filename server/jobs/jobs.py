"""Where jobs are handed in: durable before they are computed, followed, changed, given up, and found again."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from pipelines.catalog import Catalog
from server.disconnect import ClientGone
from server.endings import JobEnd, Listener, tell
from server.errors import Cancelled, Interrupted
from server.jobs.events import Events
from server.jobs.orders import Order, from_job, to_job
from server.jobs.results import Result, result_of
from server.jobs.runs import Run, Runner
from server.limits import NO_LIMITS, Limits
from server.scheduling.loop import Scheduler
from server.scheduling.queue import Stage
from server.weights import WeightHashes
from storage.database import Database
from storage.errors import IllegalTransition
from storage.files import MediaFiles
from storage.images import ImageStore
from storage.job_lists import JobLists
from storage.jobs import JobStore
from storage.records import ClientKey, JobRecord, JobStatus, Terms
from storage.room import Room
from storage.switches import Switches

log = logging.getLogger(__name__)

PAUSED = "queue_paused"


class Jobs:
    """One instance a server. `boot_id` tells its work from that of a run before it.

    The listeners hear of each job's end, on the event loop. Where the owner is None, anybody's jobs are meant.
    """

    def __init__(
        self,
        database: Database,
        room: Room,
        scheduler: Scheduler,
        weights: WeightHashes,
        events: Events,
        listeners: Sequence[Listener] = (),
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.boot_id = str(uuid4())
        self.images = ImageStore(database)
        self.room = room
        self.files = MediaFiles(room.folder)
        self.store = JobStore(database)
        self.lists = JobLists(database)
        self._switches = Switches(database)
        self._events = events
        self._listeners = listeners
        self._limits = limits
        self._scheduler = scheduler
        self._weights = weights
        self._runner = Runner(self.store, self.files, scheduler, weights, self.boot_id, self._changed)
        self._runs: dict[str, Run] = {}
        self._tasks: dict[str, asyncio.Task[JobRecord]] = {}
        self._taking = set[asyncio.Task[JobRecord]]()
        self._refusing = False
        self._closed: Exception | None = None

    @property
    def broken(self) -> set[str]:
        """The identities of the models that could not be loaded when they were last wanted."""
        return self._runner.broken

    async def recover(self, catalog: Catalog) -> None:
        """Put in line what earlier runs left, in its order, but for what was being processed (see `resume`); sweep."""
        recovered = await self.store.recover(self.boot_id)
        self._scheduler.pause(await self._switches.get(PAUSED))
        for job in await self.store.pending(suspect=False):
            await self.restart(job, catalog)
        swept = await self.files.sweep(self.images.known_ids)
        log.info("earlier runs left %s; %s", recovered, swept)

    async def idle(self) -> None:
        """Wait until what is under way now has come to its end."""
        if self._tasks:
            await asyncio.wait(set(self._tasks.values()))

    async def restart(self, job: JobRecord, catalog: Catalog) -> asyncio.Task[JobRecord] | None:
        """Carry out a pending job that was accepted before; None if it cannot be, which its row then says."""
        try:
            order = from_job(job, catalog)
        except Exception as error:
            log.warning("job %s failed: %s", job.id, error)
            await self._runner.refuse(job, error)
            return None
        return self._begin(Run(order, job))

    async def submit(self, order: Order, key: ClientKey | None = None) -> JobRecord:
        """Take an order and return once it is durable; with a key of before, the job of that time as it stands.

        Raises:
            QueueFull, DiskNearlyFull, Interrupted, KeyReused, LimitReached, NotEnoughCredit: nothing was written.
        """
        return await asyncio.shield(self._apart(self._take(order, key)))

    async def run(self, order: Order, key: ClientKey | None = None) -> Result:
        """Take an order and wait for its end.

        If the caller is cancelled and nobody else waits, so is the job, and its rows are free by the next step.

        Raises:
            QueueFull, DiskNearlyFull, Interrupted, KeyReused, LimitReached, NotEnoughCredit: nothing was written.
            EngineLost, Cancelled, JobFailed, PipelineError, StorageError: why there is no picture.
        """
        taking = self._apart(self._take(order, key))
        try:
            job = await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(lambda _: self._abandoned(taking))
            raise
        return await self._follow(job)

    async def cancel(self, owner_id: str | None, job_id: str) -> JobRecord:
        """End a job that has not ended. Raises JobNotFound; IllegalTransition."""
        job = await self.store.cancel(owner_id, job_id)
        if run := self._runs.get(job_id):
            run.stop(Cancelled(job_id))
        return job

    async def retry(self, owner_id: str | None, job_id: str, catalog: Catalog, *, limited: bool) -> JobRecord:
        """Queue a job anew that failed or was cancelled, at the price of before.

        Raises:
            JobNotFound, IllegalTransition, QueueFull, DiskNearlyFull, LimitReached, NotEnoughCredit: nothing changed.
        """
        return await asyncio.shield(self._apart(self._take_again(owner_id, job_id, catalog, limited)))

    async def change(
        self, owner_id: str | None, job_id: str, *, priority: int | None = None, to_front: bool = False
    ) -> JobRecord:
        """Give a job another place in line. Raises JobNotFound; JobEnded."""
        job = await self.store.change(owner_id, job_id, priority=priority, to_front=to_front)
        if run := self._runs.get(job_id):
            run.job = replace(run.job, priority=job.priority, moved_at=job.moved_at)
            self._changed(run)
            for ticket in run.tickets:
                self._scheduler.change(ticket, run.submission)
        return job

    async def clear(self, owner_id: str | None) -> int:
        """Cancel every job that waits and is not begun; how many those were."""
        cleared = await self.store.clear(owner_id)
        for job_id in cleared:
            if run := self._runs.get(job_id):
                run.stop(Cancelled(job_id))
        return len(cleared)

    async def pause(self, paused: bool) -> None:
        """Begin no more pictures, or begin them again; those begun go on. It outlasts the server's run."""
        await self._switches.set(PAUSED, paused)
        self._scheduler.pause(paused)

    @property
    def waiting(self) -> list[JobRecord]:
        """The jobs under way of which nothing is begun."""
        return [run.job for run in self._runs.values() if not run.at_work]

    def find(self, job_id: str) -> Run | None:
        """The run of a job that is under way."""
        return self._runs.get(job_id)

    @property
    def finishing(self) -> bool:
        """Whether a job has all of its pictures and not yet its end."""
        return any(run.tickets and not any(ticket.live for ticket in run.tickets) for run in self._runs.values())

    def wind_down(self) -> None:
        """Take no more orders, and end those of which nothing is begun, as `stop` does."""
        self._refusing = True
        for run in self._runs.values():
            if all(ticket.live and ticket.stage is Stage.WAITING for ticket in run.tickets):
                run.stop(Interrupted())

    def stop(self, reason: Exception | None = None) -> None:
        """Take no more orders and end those under way; their waiters hear the reason, else `Interrupted`.

        Jobs that nobody waits for are left to the next run of the server, and after DeviceLost so are all.
        """
        self._refusing = True
        self._closed = self._closed or reason or Interrupted()
        self._events.close()
        self._weights.halt()
        for run in self._runs.values():
            run.stop(self._closed)

    async def close(self) -> None:
        """Stop, and wait until every job has its end in the database, or is left there to the next run."""
        self.stop()
        while pending := {*self._taking, *self._tasks.values()}:
            await asyncio.wait(pending)
            await asyncio.sleep(0)  # for what is done when a task is

    def _apart(self, take: Coroutine[Any, Any, JobRecord]) -> asyncio.Task[JobRecord]:
        """Take an order in a task of its own, which no client can cut in the middle of a row."""
        taking = asyncio.create_task(take)
        self._taking.add(taking)
        taking.add_done_callback(self._taking.discard)
        return taking

    async def _take(self, order: Order, key: ClientKey | None) -> JobRecord:
        if self._refusing:
            raise Interrupted(taken=False)
        new, terms = to_job(order), self._terms(order)
        # Looked at before room is kept, so that whoever is over its limits takes no room from others.
        if (key or terms) and (known := await self.store.foresee(new, key, terms)):
            return known
        self.room.demand()
        with self._scheduler.reserve(order.entry, order.requests):
            job = await self.store.insert(new, key, terms)
        # Nothing is awaited from here to the line, so the room is still there.
        if job.status is JobStatus.PENDING and job.id not in self._runs:
            self._begin(run := Run(order, job))
            if run.stopped is None:
                self._runner.line_up(run)
                self._runner.promise(run)
        return job

    async def _take_again(self, owner_id: str | None, job_id: str, catalog: Catalog, limited: bool) -> JobRecord:
        former = await self.store.get(owner_id, job_id)
        if former.finished_at is None:  # were it cancelled from here on, its run would still be ending
            raise IllegalTransition(job_id, former.status, JobStatus.PENDING)
        order = replace(from_job(former, catalog), attached=False, limited=limited)
        if terms := self._terms(order):
            await self.store.foresee(former, None, terms)
        self.room.demand()
        with self._scheduler.reserve(order.entry, order.requests):
            job = await self.store.retry(owner_id, job_id, terms)
            while ending := self._tasks.get(job_id):
                await asyncio.wait({ending})  # its last attempt may still be at its files
                await asyncio.sleep(0)  # for `_ended`
            self._begin(Run(order, job))
        return job

    def _terms(self, order: Order) -> Terms | None:
        """What an order counts against, unless an operator hands it in."""
        if not order.limited:
            return None
        return self._limits.terms(self._scheduler.outlook.retry_after(self._scheduler.line.tickets))

    def _begin(self, run: Run) -> asyncio.Task[JobRecord]:
        entry = run.order.entry
        run.at_once = self._limits.jobs_at_once if run.order.limited else 0
        self._weights.begin(entry, anew=entry.identity not in self._scheduler.models.resident)
        if self._closed is not None:
            run.stop(self._closed)
        task = asyncio.create_task(self._runner.carry_out(run))
        self._runs[run.job.id], self._tasks[run.job.id] = run, task
        self._changed(run)
        task.add_done_callback(lambda _: self._ended(run, task))
        return task

    async def _follow(self, job: JobRecord) -> Result:
        """Wait for the end of a job, as one of those who do."""
        run, task = self._runs.get(job.id), self._tasks.get(job.id)
        if run is None or task is None:
            return await result_of(await self.store.get(job.owner_id, job.id), self.images)
        run.waiting += 1
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            run.waiting -= 1
            self._let_go(run)
            raise
        return await result_of(task.result(), self.images)

    def _abandoned(self, taking: "asyncio.Task[JobRecord]") -> None:
        """Whoever wanted to wait for a job is gone before it was accepted."""
        if taking.exception() is None and (run := self._runs.get(taking.result().id)):
            self._let_go(run)

    def _let_go(self, run: Run) -> None:
        """Cancel a job for which a client waited, once none does."""
        if run.job.attached and not run.waiting:
            run.stop(ClientGone("The client hung up."))

    def _changed(self, run: Run) -> None:
        self._events.changed(run.job.owner_id, run.job.id)

    def _ended(self, run: Run, task: "asyncio.Task[JobRecord]") -> None:
        del self._runs[run.job.id], self._tasks[run.job.id]
        self._changed(run)
        error = task.exception()  # retrieved: its waiter may have gone, and then nobody else asks
        kept = 0 if error else len(run.order.requests) - len(Result(task.result(), ()).failures)
        weights = self._weights.known(run.order.entry)
        tell(self._listeners, JobEnd(run.order, run.job.id, run.began, run.images, kept, weights, error))
