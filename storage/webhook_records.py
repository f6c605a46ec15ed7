"""What the webhooks' stores take and give: frozen facts about webhooks, events and deliveries."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class EventType(StrEnum):
    """What may have happened.

    GENERATED: a picture is there. FAILED: a job ended without all of its pictures. DELETED: a picture is gone.
    TEST: somebody asked for it.
    """

    GENERATED = "image.generated"
    FAILED = "image.failed"
    DELETED = "image.deleted"
    TEST = "webhook.test"


class DeliveryStatus(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class NewWebhook:
    """An endpoint that wants to be told. No types mean every type, no owner means everybody's events."""

    url: str
    secret: str = field(repr=False)
    description: str = ""
    types: Sequence[str] = ()
    owner_id: str | None = None
    enabled: bool = True


@dataclass(frozen=True, kw_only=True)
class WebhookRecord(NewWebhook):
    """One webhook as it stands.

    Attributes:
        trouble: why something could not be delivered, since anything last was.
        former_secret: the one before the last rotation, which signs along until `former_until`.
        resume_at: the time before which the endpoint does not want to hear anything.
    """

    id: str
    trouble: str | None
    former_secret: str | None = field(repr=False)
    former_until: datetime | None
    resume_at: datetime | None
    created_at: datetime

    def secrets_at(self, now: datetime) -> list[str]:
        """The secrets that sign a message, the present one first."""
        if self.former_secret is None or self.former_until is None or self.former_until <= now:
            return [self.secret]
        return [self.secret, self.former_secret]


@dataclass(frozen=True)
class EventRecord:
    """Something that happened. `facts` is the row it happened to, as it was then, in JSON's types."""

    id: str
    type: EventType
    owner_id: str | None
    subject: str
    facts: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class DeliveryRecord:
    """One event on its way to one webhook. `status_code` and `error` are the last attempt's."""

    event_id: str
    type: EventType
    status: DeliveryStatus
    attempts: int
    due_at: datetime
    attempted_at: datetime | None
    status_code: int | None
    error: str | None


@dataclass(frozen=True)
class Due:
    """What is to be delivered next to a webhook, after how many attempts, and not before when."""

    number: int
    attempts: int
    at: datetime
    event: EventRecord
    webhook: WebhookRecord


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What came of an attempt to deliver.

    Attributes:
        at: when it was made.
        status_code: the answer's; None where there was none.
        error: why it counts as failed; None where it does not.
        next_at: when to try again; None where this was the last attempt.
        resume_at: the time before which the endpoint does not want to hear anything.
        gone: whether the endpoint wants nothing more, ever.
    """

    at: datetime
    status_code: int | None = None
    error: str | None = None
    next_at: datetime | None = None
    resume_at: datetime | None = None
    gone: bool = False

    @property
    def status(self) -> DeliveryStatus:
        if self.error is None:
            return DeliveryStatus.DELIVERED
        return DeliveryStatus.PENDING if self.next_at else DeliveryStatus.FAILED
