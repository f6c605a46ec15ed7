"""Webhooks: who is told of events, and what became of each delivery. Operators own them all."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from storage import outbox
from storage.database import LEAVES_EVENTS, Database
from storage.errors import WebhookNotFound
from storage.tables import Delivery, Event, Webhook
from storage.webhook_records import (
    Attempt,
    DeliveryRecord,
    DeliveryStatus,
    Due,
    EventRecord,
    EventType,
    NewWebhook,
    WebhookRecord,
)

ROTATION = timedelta(hours=24)
"""For how long a secret signs along after another took its place."""


class WebhookStore:
    """The webhooks that operators registered."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, new: NewWebhook) -> WebhookRecord:
        async with self._database.write() as session:
            facts = asdict(new) | {"types": list(new.types)}
            webhook = Webhook(id=str(uuid4()), created_at=datetime.now(UTC), **facts)
            session.add(webhook)
        return _webhook(webhook)

    async def all(self) -> list[WebhookRecord]:
        """Every webhook, the oldest first."""
        async with self._database.read() as session:
            found = await session.exec(select(Webhook).order_by(col(Webhook.created_at), col(Webhook.id)))
            return [_webhook(webhook) for webhook in found]

    async def get(self, webhook_id: str) -> WebhookRecord:
        """Raises WebhookNotFound."""
        async with self._database.read() as session:
            return _webhook(await _found(session, webhook_id))

    async def change(self, webhook_id: str, changes: dict[str, Any], secret: str | None = None) -> WebhookRecord:
        """Change some fields; with a new secret, the former one signs along for a while. Raises WebhookNotFound.

        One that is enabled, again or still, starts afresh: what waits for it is due when its time comes.
        """
        async with self._database.write() as session:
            webhook = await _found(session, webhook_id)
            webhook.sqlmodel_update(changes)
            if secret is not None:
                webhook.former_secret, webhook.former_until = webhook.secret, datetime.now(UTC) + ROTATION
                webhook.secret = secret
            if changes.get("enabled"):
                webhook.trouble = webhook.resume_at = None
            session.info[LEAVES_EVENTS] = webhook.enabled
        return _webhook(webhook)

    async def delete(self, webhook_id: str) -> None:
        """Forget a webhook and what was to be delivered to it. Raises WebhookNotFound."""
        async with self._database.write() as session:
            await session.delete(await _found(session, webhook_id))

    async def test(self, webhook_id: str) -> str:
        """Have an event delivered that tells nothing; its id. Raises WebhookNotFound."""
        async with self._database.write() as session:
            webhook = await _found(session, webhook_id)
            return await outbox.post(session, EventType.TEST, None, webhook.id, {}, [webhook.id])

    async def deliveries(self, webhook_id: str, limit: int) -> list[DeliveryRecord]:
        """The newest deliveries to a webhook."""
        statement = select(Delivery, Event).join(Event, col(Event.id) == col(Delivery.event_id))
        newest = statement.where(Delivery.webhook_id == webhook_id).order_by(col(Delivery.number).desc()).limit(limit)
        async with self._database.read() as session:
            return [_delivery(delivery, event) for delivery, event in await session.exec(newest)]


class DeliveryStore:
    """What is on its way to the webhooks, for whoever delivers it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def waiting(self) -> Sequence[str]:
        """The ids of the enabled webhooks to which something is to be delivered."""
        statement = select(Delivery.webhook_id).join(Webhook, col(Webhook.id) == col(Delivery.webhook_id)).distinct()
        async with self._database.read() as session:
            found = await session.exec(statement.where(Delivery.status == DeliveryStatus.PENDING, Webhook.enabled))
            return found.all()

    async def next(self, webhook_id: str) -> Due | None:
        """What is to be delivered next to a webhook; None if there is nothing, or it is disabled."""
        statement = (
            select(Delivery, Event, Webhook)
            .join(Event, col(Event.id) == col(Delivery.event_id))
            .join(Webhook, col(Webhook.id) == col(Delivery.webhook_id))
            .where(Delivery.webhook_id == webhook_id, Delivery.status == DeliveryStatus.PENDING, Webhook.enabled)
            .order_by(col(Delivery.due_at), col(Delivery.number))
        )
        async with self._database.read() as session:
            found = (await session.exec(statement.limit(1))).one_or_none()
            return None if found is None else _due(*found)

    async def record(self, number: int, attempt: Attempt) -> None:
        """Write down what came of an attempt. What was deleted meanwhile is no matter."""
        async with self._database.write() as session:
            delivery = await session.get(Delivery, number)
            if delivery is None:
                return
            delivery.status = attempt.status
            delivery.attempts += 1
            delivery.due_at = attempt.next_at or delivery.due_at
            delivery.attempted_at = attempt.at
            delivery.status_code = attempt.status_code
            delivery.error = attempt.error
            webhook = await _found(session, delivery.webhook_id)
            if attempt.status is not DeliveryStatus.PENDING:
                webhook.trouble = attempt.error
            webhook.enabled = webhook.enabled and not attempt.gone
            webhook.resume_at = attempt.resume_at or webhook.resume_at


async def _found(session: AsyncSession, webhook_id: str) -> Webhook:
    webhook = await session.get(Webhook, webhook_id)
    if webhook is None:
        raise WebhookNotFound(webhook_id)
    return webhook


def _webhook(webhook: Webhook) -> WebhookRecord:
    return WebhookRecord(**webhook.model_dump())


def _delivery(delivery: Delivery, event: Event) -> DeliveryRecord:
    return DeliveryRecord(
        event.id,
        EventType(event.type),
        DeliveryStatus(delivery.status),
        delivery.attempts,
        delivery.due_at,
        delivery.attempted_at,
        delivery.status_code,
        delivery.error,
    )


def _due(delivery: Delivery, event: Event, webhook: Webhook) -> Due:
    if delivery.number is None:
        raise AssertionError("a delivery that was read has its number")
    record = _webhook(webhook)
    at = max(delivery.due_at, record.resume_at or delivery.due_at)
    told = EventRecord(event.id, EventType(event.type), event.owner_id, event.subject, event.facts, event.created_at)
    return Due(delivery.number, delivery.attempts, at, told, record)
