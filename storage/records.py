"""What the stores take and give: frozen facts about jobs and images, free of the database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from storage.media import ImageFormat, MediaName

MAXIMUM_ATTEMPTS = 3
ENGINE_LOST = "engine_lost"  # the error_code of a job under which the engine was lost
MAXIMUM_SEED = 2**53 - 1  # the largest whole number that JavaScript keeps exact


class JobStatus(StrEnum):
    """Where a job stands. `storage.transitions.TRANSITIONS` says where it may go from there."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What a client asked for, settled: `request` is kept as it is and never looked into here."""

    owner_id: str
    session_id: str | None = None
    priority: int = 0
    request: dict[str, Any]
    prompt: str
    negative_prompt: str = ""
    model: str
    image_count: int = 1
    user: str | None = None
    safety_identifier: str | None = None
    key_id: str | None = None
    public: bool = False
    pixel_steps: int = 0
    """Width x height x steps of all its images."""
    expected_cost: float = 0.0
    attached: bool = True
    """Whether a client waits for the answer: such a job ends with the run of the server that it was sent to."""
    max_attempts: int = MAXIMUM_ATTEMPTS


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job as it stands.

    Attributes:
        due_at: the time before which it is not tried again.
        moved_at: when it was last moved to the front of its priority.
        boot_id: the run of the server that took it.
        key_id: the credential it was sent with, by which figures are kept.
        public: whether anybody may see its pictures who has their address.
        losses: how often the engine was lost while the job was processing, which spends none of its attempts.
        outcome: what its end came to besides pictures, as the server wrote it.
        pixel_steps: width x height x steps of all its images.
        expected_cost: what it costs if all of its images are made.
        cost: of the images that were made; 0 until its end.
    """

    id: str
    owner_id: str
    session_id: str | None
    status: JobStatus
    priority: int
    request: dict[str, Any]
    prompt: str
    negative_prompt: str
    model: str
    image_count: int
    user: str | None
    safety_identifier: str | None
    key_id: str | None
    public: bool
    attached: bool
    due_at: datetime | None
    moved_at: datetime | None
    boot_id: str | None
    attempts: int
    max_attempts: int
    losses: int
    error_code: str | None
    error_message: str | None
    outcome: dict[str, Any] | None
    pixel_steps: int
    expected_cost: float
    cost: float
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class JobQuery:
    """Which jobs are asked for: None and nothing mean all. `cursor` is the last job of the page before."""

    owner_id: str | None
    session_id: str | None = None
    key_id: str | None = None
    statuses: Sequence[JobStatus] = ()
    limit: int = 20
    cursor: str | None = None


@dataclass(frozen=True)
class JobPage:
    """Some jobs, how many there are in all, and the cursor of the next page, if any follows."""

    jobs: Sequence[JobRecord]
    total: int
    cursor: str | None


@dataclass(frozen=True)
class ClientKey:
    """How a client calls a request that it may send more than once, and the digest of what that request asks for."""

    key: str
    digest: str
    told: str = ""
    """What its client knows it by, where it was never sent as a key."""


@dataclass(frozen=True, kw_only=True)
class KeyRecord:
    """A credential of somebody's. `digest` is the SHA-256 of its secret, which nobody keeps."""

    id: str
    owner_id: str
    name: str
    role: str
    scopes: Sequence[str]
    digest: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @property
    def valid(self) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > datetime.now(UTC))


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the owner of a job may hand in; 0 is without bound.

    Attributes:
        requests: in an hour.
        pixel_steps: in an hour, over all that it hands in.
        queued: how many of its jobs may wait.
        patience: seconds after which one that has too many waiting may try again.
        credits: whether what the job is expected to cost is reserved.
    """

    requests: int = 0
    pixel_steps: int = 0
    queued: int = 0
    patience: float = 60
    credits: bool = False


class EntryKind(StrEnum):
    """Why a balance changed."""

    GRANT = "grant"
    RESERVE = "reserve"
    SETTLE = "settle"
    REFUND = "refund"


@dataclass(frozen=True, kw_only=True)
class CreditEntry:
    """One change of an owner's balance, and the balance after it, in millionths."""

    id: int
    owner_id: str
    job_id: str | None
    kind: EntryKind
    amount: int
    balance: int
    note: str | None
    reference: str | None
    created_at: datetime


@dataclass(frozen=True)
class CreditPage:
    """Some entries, newest first, the balance and what is reserved beside it; the cursor of the next page, if any."""

    entries: Sequence[CreditEntry]
    balance: int
    reserved: int
    cursor: int | None


@dataclass(frozen=True, kw_only=True)
class NewImage:
    """One finished picture whose files already lie on disk. Owner and session come from the job's row."""

    id: str
    index: int
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
    parameters: dict[str, Any]
    format: ImageFormat
    byte_count: int
    sha256: str
    generation_seconds: float
    cost: float
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class ImageRecord(NewImage):
    """One image as it stands, with the job and the owner it belongs to."""

    job_id: str
    owner_id: str
    session_id: str | None
    public: bool
    deleted_at: datetime | None

    @property
    def media_name(self) -> MediaName:
        return MediaName.of_image(self.id, self.created_at, self.format)

    @property
    def thumbnail_name(self) -> MediaName:
        return MediaName.of_thumbnail(self.id, self.created_at)


@dataclass(frozen=True)
class HistoryPage:
    """One page of an owner's images, newest first, and how many there are in all."""

    images: Sequence[ImageRecord]
    total: int


@dataclass(frozen=True)
class Recovered:
    """How many jobs a dead run left behind, by what became of them."""

    requeued: int
    failed: int

    def __str__(self) -> str:
        return f"{self.requeued} unfinished jobs to be tried again and {self.failed} that failed with them"
