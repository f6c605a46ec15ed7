"""Webhooks for tests: a database with endpoints, a clock that is set by hand, and a dispatcher at work."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func
from sqlmodel import select

from server.identity.links import Links
from server.outbound.addresses import Rules
from server.outbound.client import Outbound
from server.webhooks.dispatcher import Dispatcher
from server.webhooks.signing import new_secret
from storage.database import Database
from storage.tables import Delivery, Event
from storage.webhook_records import NewWebhook, WebhookRecord
from storage.webhooks import DeliveryStore, WebhookStore
from tests.fake_server import PATIENCE

HERE = Rules.parse("127.0.0.1")


class Clock:
    """The time of day, put forward by hand."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class Post:
    """A dispatcher at work."""

    database: Database
    clock: Clock

    def pass_time(self, **time: float) -> None:
        """Put the clock forward, and have everybody look at it."""
        self.clock.ahead += timedelta(**time)
        self.database.events_written.set()


@asynccontextmanager
async def delivering(database: Database, outbound: Outbound | None = None) -> AsyncIterator[Post]:
    """A dispatcher, until the block ends."""
    clock = Clock()
    outbound = outbound or Outbound(HERE)
    dispatcher = Dispatcher(DeliveryStore(database), outbound, database.events_written, Links(None, 1), clock=clock)
    task = asyncio.create_task(dispatcher.run())
    try:
        yield Post(database, clock)
    finally:
        assert not task.done(), task
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def endpoint(database: Database, url: str = "https://hooks.example.org/", **facts: Any) -> WebhookRecord:
    return await WebhookStore(database).insert(NewWebhook(url=url, secret=new_secret(), **facts))


async def count(database: Database, table: type[Event] | type[Delivery]) -> int:
    async with database.read() as session:
        return int((await session.exec(select(func.count()).select_from(table))).one())


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.005)
