"""The outbox: events written in the transaction of what they tell of, and only if some webhook wants them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import delete
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from storage.database import LEAVES_EVENTS
from storage.tables import Delivery, Event, Image, Job, Webhook
from storage.webhook_records import DeliveryStatus, EventType

KEPT = timedelta(days=7)
"""For how long an event is remembered, delivered or not: about twice as long as it is tried to deliver it."""

BATCH = 1000
"""Rows that are asked for at once: SQLite bounds the values in one statement."""

BULKY = {"request", "outcome"}
"""Fields of a job that no event tells."""


async def tell(session: AsyncSession, type: EventType, rows: Sequence[Job] | Sequence[Image]) -> None:
    """Write an event of this type for each row, with a delivery to each webhook that wants it."""
    wanting = await _wanting(session, type)
    for row in rows:
        hearers = [webhook.id for webhook in wanting if webhook.owner_id in (None, row.owner_id)]
        if hearers:
            facts = row.model_dump(mode="json", exclude=BULKY)
            await post(session, type, row.owner_id, row.id, facts, hearers)


async def tell_failed(session: AsyncSession, job_ids: Sequence[str]) -> None:
    """The same for any number of jobs that ended at once without pictures, the oldest first."""
    if not job_ids or not await _wanting(session, EventType.FAILED):
        return
    for start in range(0, len(job_ids), BATCH):
        named = select(Job).where(col(Job.id).in_(job_ids[start : start + BATCH]))
        jobs = (await session.exec(named.order_by(col(Job.created_at)))).all()
        await tell(session, EventType.FAILED, jobs)


async def post(
    session: AsyncSession,
    type: EventType,
    owner_id: str | None,
    subject: str,
    facts: dict[str, Any],
    webhook_ids: Sequence[str],
) -> str:
    """Write one event and its deliveries, and forget what is too old; the event's id."""
    now = datetime.now(UTC)
    await session.exec(delete(Event).where(col(Event.created_at) <= now - KEPT))
    event = Event(id=str(uuid4()), type=type, owner_id=owner_id, subject=subject, facts=facts, created_at=now)
    session.add(event)
    await session.flush()  # the event's row first: the deliveries refer to it
    session.add_all(
        Delivery(event_id=event.id, webhook_id=webhook_id, status=DeliveryStatus.PENDING, due_at=now)
        for webhook_id in webhook_ids
    )
    session.info[LEAVES_EVENTS] = True
    return event.id


async def _wanting(session: AsyncSession, type: EventType) -> list[Webhook]:
    """The webhooks that want events of this type, if of nobody in particular."""
    enabled = await session.exec(select(Webhook).where(col(Webhook.enabled)))
    return [webhook for webhook in enabled if type in (webhook.types or EventType)]
