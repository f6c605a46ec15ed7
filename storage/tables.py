"""The tables of the database, as SQLModel classes. They stay in this package; the stores speak records."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Dialect,
    Enum,
    Index,
    Integer,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlmodel import Field, SQLModel

from storage.media import ImageFormat
from storage.records import MAXIMUM_SEED, JobStatus

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class Moment(TypeDecorator[datetime]):
    """A point in time as whole microseconds since 1970 UTC: exact, sortable, and aware when it comes back."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - EPOCH) // MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else EPOCH + value * MICROSECOND


def _values(choices: type[StrEnum]) -> Sequence[str]:
    return [choice.value for choice in choices]


class StatusText(TypeDecorator[JobStatus]):
    impl = Enum(JobStatus, native_enum=False, values_callable=_values, length=16)
    cache_ok = True


class FormatText(TypeDecorator[ImageFormat]):
    impl = Enum(ImageFormat, native_enum=False, values_callable=_values, length=16)
    cache_ok = True


class Job(SQLModel, table=True):
    """One row per accepted job; it is never removed."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_status", "status"), Index("ix_jobs_list", "owner_id", "created_at", "id"))

    id: str = Field(primary_key=True)
    owner_id: str
    session_id: str | None
    status: JobStatus = Field(sa_type=StatusText)
    priority: int
    request: dict[str, Any] = Field(sa_type=JSON)
    prompt: str
    negative_prompt: str
    model: str
    image_count: int
    user: str | None
    safety_identifier: str | None
    key_id: str | None = None
    public: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    attached: bool = Field(default=True, sa_column_kwargs={"server_default": true()})
    due_at: datetime | None = Field(default=None, sa_type=Moment)
    moved_at: datetime | None = Field(default=None, sa_type=Moment)
    boot_id: str | None = None
    attempts: int = 0
    max_attempts: int
    losses: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    error_code: str | None = None
    error_message: str | None = None
    outcome: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    pixel_steps: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    expected_cost: float = Field(default=0.0, sa_column_kwargs={"server_default": "0"})
    cost: float = 0.0
    created_at: datetime = Field(sa_type=Moment)
    started_at: datetime | None = Field(default=None, sa_type=Moment)
    finished_at: datetime | None = Field(default=None, sa_type=Moment)


class Image(SQLModel, table=True):
    """One row per finished picture; a deleted one stays as a tombstone until its files are gone for good."""

    __tablename__ = "images"
    __table_args__ = (
        UniqueConstraint("job_id", "index", name="uq_images_job_id_index"),
        CheckConstraint(f"seed BETWEEN 0 AND {MAXIMUM_SEED}", name="ck_images_seed"),
        Index("ix_images_history", "owner_id", "created_at", "id", sqlite_where=text("deleted_at IS NULL")),
    )

    id: str = Field(primary_key=True)
    job_id: str = Field(foreign_key="jobs.id")
    index: int
    owner_id: str
    session_id: str | None
    prompt: str
    negative_prompt: str
    model: str
    family: str
    model_hash: str | None
    seed: int
    width: int
    height: int
    steps: int
    guidance_scale: float
    sampler: str
    schedule: str
    parameters: dict[str, Any] = Field(sa_type=JSON)
    format: ImageFormat = Field(sa_type=FormatText)
    byte_count: int
    sha256: str
    generation_seconds: float
    cost: float
    public: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    created_at: datetime = Field(sa_type=Moment)
    deleted_at: datetime | None = Field(default=None, sa_type=Moment)


class KnownKey(SQLModel, table=True):
    """What an owner's client calls a request it may send again, for as long as that is remembered."""

    __tablename__ = "client_keys"
    __table_args__ = (Index("ix_client_keys_age", "created_at"),)

    owner_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    digest: str
    job_id: str = Field(foreign_key="jobs.id")
    created_at: datetime = Field(sa_type=Moment)


class Admission(SQLModel, table=True):
    """One time that an owner handed a job in, for as long as that counts against its limits."""

    __tablename__ = "admissions"
    __table_args__ = (
        Index("ix_admissions_owner", "owner_id", "created_at"),
        Index("ix_admissions_age", "created_at"),
    )

    id: int | None = Field(default=None, primary_key=True)
    owner_id: str
    pixel_steps: int
    created_at: datetime = Field(sa_type=Moment)


class Credit(SQLModel, table=True):
    """One entry of the ledger, in millionths; it is never changed."""

    __tablename__ = "credits"
    __table_args__ = (
        UniqueConstraint("reference", name="uq_credits_reference"),
        CheckConstraint("balance >= 0", name="ck_credits_balance"),
        Index("ix_credits_owner", "owner_id", "id"),
        Index("ix_credits_job", "job_id"),
    )

    id: int | None = Field(default=None, primary_key=True)
    owner_id: str
    job_id: str | None = Field(default=None, foreign_key="jobs.id")
    kind: str
    amount: int
    balance: int
    note: str | None
    reference: str | None
    created_at: datetime = Field(sa_type=Moment)


class Switch(SQLModel, table=True):
    """Something an operator turned on or off, for as long as nobody turns it back."""

    __tablename__ = "switches"

    name: str = Field(primary_key=True)
    enabled: bool


class ApiKey(SQLModel, table=True):
    """A credential of somebody's: who they are and what it is good for, but not its secret."""

    __tablename__ = "api_keys"

    id: str = Field(primary_key=True)
    owner_id: str
    name: str
    role: str
    scopes: list[str] = Field(sa_type=JSON)
    digest: str
    created_at: datetime = Field(sa_type=Moment)
    expires_at: datetime | None = Field(default=None, sa_type=Moment)
    revoked_at: datetime | None = Field(default=None, sa_type=Moment)


class Secret(SQLModel, table=True):
    """A random value that is drawn once, such as the one that signs links."""

    __tablename__ = "secrets"

    name: str = Field(primary_key=True)
    value: bytes


class Webhook(SQLModel, table=True):
    """An address that is told of events, and the secret by which it knows who tells."""

    __tablename__ = "webhooks"

    id: str = Field(primary_key=True)
    url: str
    description: str
    types: list[str] = Field(sa_type=JSON)
    owner_id: str | None
    enabled: bool
    trouble: str | None = None
    secret: str
    former_secret: str | None = None
    former_until: datetime | None = Field(default=None, sa_type=Moment)
    resume_at: datetime | None = Field(default=None, sa_type=Moment)
    created_at: datetime = Field(sa_type=Moment)


class Event(SQLModel, table=True):
    """Something that happened and that somebody wants to hear of; written together with what it tells."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_age", "created_at"),)

    id: str = Field(primary_key=True)
    type: str
    owner_id: str | None
    subject: str
    facts: dict[str, Any] = Field(sa_type=JSON)
    created_at: datetime = Field(sa_type=Moment)


class Delivery(SQLModel, table=True):
    """One event on its way to one webhook. Numbers tell which came first."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("ix_deliveries_due", "webhook_id", "status", "due_at", "number"),)

    number: int | None = Field(default=None, primary_key=True)
    event_id: str = Field(foreign_key="events.id", ondelete="CASCADE", index=True)
    webhook_id: str = Field(foreign_key="webhooks.id", ondelete="CASCADE")
    status: str
    attempts: int = 0
    due_at: datetime = Field(sa_type=Moment)
    attempted_at: datetime | None = Field(default=None, sa_type=Moment)
    status_code: int | None = None
    error: str | None = None
