"""The dispatcher: brings events from the outbox to the endpoints, each by a worker of its own."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

from server.identity.links import Links
from server.outbound.addresses import AddressRefused
from server.outbound.client import Outbound, OutboundFailed
from server.webhooks.messages import CONTENT_TYPE, message
from server.webhooks.schedule import answered, unanswered
from server.webhooks.signing import signatures
from storage.errors import DatabaseBusy, DiskFault, DiskFull
from storage.webhook_records import Attempt, DeliveryStatus, Due
from storage.webhooks import DeliveryStore

log = logging.getLogger(__name__)

LONGEST_NAP = 300.0
"""Seconds until a worker looks again though nothing was written: the clock may have been set."""

FAULT_SECONDS = 5.0
"""Until a question that the database refused is put to it again."""

PASSING = (DatabaseBusy, DiskFull, DiskFault)
"""Refusals after which the same question may be answered. Until then nothing is sent: its end could not be recorded."""

MISTAKE_SECONDS = 60.0
"""Until a worker goes on after an error that nobody foresaw. What it sent just before may be sent again."""

Found = TypeVar("Found")


class Dispatcher:
    """Delivers at least once: an attempt whose end could not be written down is made again, under the same id.

    What is due when lies in the database, so a restart changes nothing. An endpoint's worker tries one delivery after
    the other, those due first, and is there for as long as something is to be delivered to it.

    Args:
        written: set whenever there is something new to deliver.
        links: signs the addresses of pictures.
        public_url: where the server is reached from outside, if anybody said.
        clock: the time of day.
    """

    def __init__(
        self,
        deliveries: DeliveryStore,
        outbound: Outbound,
        written: asyncio.Event,
        links: Links,
        public_url: str = "",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._deliveries = deliveries
        self._outbound = outbound
        self._written = written
        self._links = links
        self._public_url = public_url
        self._clock = clock
        self._workers: dict[str, asyncio.Event] = {}
        """What wakes each worker, by its webhook's id."""

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            await _undaunted("webhooks", partial(self._assign, tasks))

    async def _assign(self, tasks: asyncio.TaskGroup) -> None:
        """See, whenever something was written, that each endpoint has a worker."""
        while True:
            self._written.clear()
            for webhook_id in await _patiently(self._deliveries.waiting):
                if webhook_id not in self._workers:
                    self._workers[webhook_id] = asyncio.Event()
                    tasks.create_task(_undaunted(f"webhook {webhook_id}", partial(self._work, webhook_id)))
            for wake in self._workers.values():
                wake.set()
            await self._written.wait()

    async def _work(self, webhook_id: str) -> None:
        """Deliver to one endpoint until there is nothing left."""
        wake = self._workers[webhook_id]
        while True:
            wake.clear()
            due = await _patiently(partial(self._deliveries.next, webhook_id))
            if due is not None:
                seconds = (due.at - self._clock()).total_seconds()
                await (_first(wake, min(seconds, LONGEST_NAP)) if seconds > 0 else self._deliver(due))
            elif not wake.is_set():
                del self._workers[webhook_id]
                return

    async def _deliver(self, due: Due) -> None:
        """Make one attempt and write down what came of it."""
        attempt = await self._attempt(due)
        if attempt.status is DeliveryStatus.FAILED:
            log.warning("webhook %s: event %s is given up: %s", due.webhook.id, due.event.id, attempt.error)
        await _patiently(lambda: self._deliveries.record(due.number, attempt))

    async def _attempt(self, due: Due) -> Attempt:
        try:
            now = self._clock()
            body = message(due.event, self._public_url, self._links)
            reply = await self._outbound.post(due.webhook.url, _headers(due, now, body), body)
            return answered(reply, due.attempts, self._clock())
        except (AddressRefused, OutboundFailed) as error:
            reason = str(error)
        except Exception as error:
            log.exception("webhook %s: event %s could not be sent", due.webhook.id, due.event.id)
            reason = f"Something went wrong on the server ({type(error).__name__}); its log has the details."
        return unanswered(reason, due.attempts, self._clock())


def _headers(due: Due, now: datetime, body: bytes) -> dict[str, str]:
    timestamp = int(now.timestamp())
    return {
        "Content-Type": CONTENT_TYPE,
        "User-Agent": f"darkroom/{version('darkroom')}",
        "webhook-id": due.event.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signatures(due.webhook.secrets_at(now), due.event.id, timestamp, body),
    }


async def _undaunted(who: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do some work to its end, from its beginning again after each error, which ends nobody else's work."""
    while True:
        try:
            return await work()
        except Exception:
            log.exception("%s: deliveries stopped, and go on in %.0f s", who, MISTAKE_SECONDS)
            await asyncio.sleep(MISTAKE_SECONDS)


async def _patiently(ask: Callable[[], Coroutine[Any, Any, Found]]) -> Found:
    """Ask the database until it answers, if it may one day. Whoever is cancelled meanwhile waits for the answer still.

    What was delivered is to be written down, or it is delivered again.
    """
    while True:
        asking = asyncio.create_task(ask())
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            await asyncio.wait({asking})
            raise
        except PASSING as error:
            log.error("the webhooks' deliveries wait for the database: %s", error)
            await asyncio.sleep(FAULT_SECONDS)


async def _first(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but not for longer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
