"""API keys: `dk_<id>_<secret>`, shown once when made; of the secret only its digest is kept."""

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hmac import compare_digest
from typing import Annotated, TypedDict

from server.identity.caller import Caller, Permission, Role
from server.playground import iso
from server.schemas import Moment, says
from storage.errors import IllegalTransition
from storage.job_lists import JobLists
from storage.keys import KeyStore
from storage.records import JobQuery, KeyRecord
from storage.transitions import OPEN

PREFIX = "dk_"
ID_BYTES = 6
MOST_JOBS = 100_000
SECRET_BYTES = 32
"""As many random bits as the digest has; so a plain SHA-256 is enough, where a password would need a slow one."""


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """What a key is to be: whose, what it is called, and what it is good for."""

    owner_id: str
    name: str = ""
    role: Role = Role.USER
    permissions: frozenset[Permission] = frozenset(Permission)
    lifetime: timedelta | None = None


class KeyFacts(TypedDict):
    """A key, without its secret."""

    id: str
    owner: Annotated[str, says("Whose it is.")]
    name: Annotated[str, says("What it is for.")]
    role: Role
    permissions: list[Permission]
    createdAt: Moment
    expiresAt: Annotated[Moment | None, says("Null where it never does.")]
    revokedAt: Moment | None
    valid: Annotated[bool, says("Whether it is neither revoked nor expired.")]


class MadeKey(KeyFacts):
    """A key that was just made."""

    key: Annotated[str, says("The key itself, told this once only.")]


def key_facts(record: KeyRecord) -> KeyFacts:
    """A key as clients and operators read of it."""
    return {
        "id": record.id,
        "owner": record.owner_id,
        "name": record.name,
        "role": Role(record.role),
        "permissions": [Permission(scope) for scope in record.scopes],
        "createdAt": iso(record.created_at),
        "expiresAt": None if record.expires_at is None else iso(record.expires_at),
        "revokedAt": None if record.revoked_at is None else iso(record.revoked_at),
        "valid": record.valid,
    }


async def cancel_jobs_of(
    record: KeyRecord, lists: JobLists, cancel: Callable[[str | None, str], Awaitable[object]]
) -> None:
    """End the jobs that came with a key and have not ended."""
    page = await lists.page(JobQuery(owner_id=record.owner_id, key_id=record.id, statuses=tuple(OPEN), limit=MOST_JOBS))
    for job in page.jobs:
        with suppress(IllegalTransition):  # it ended by itself meanwhile
            await cancel(record.owner_id, job.id)


class Keys:
    """Makes keys, and knows by which of them somebody asks."""

    def __init__(self, store: KeyStore) -> None:
        self.store = store

    async def issue(self, new: NewKey) -> tuple[KeyRecord, str]:
        """A new key's record, and the key itself, which nobody can tell again."""
        now, secret = datetime.now(UTC), secrets.token_urlsafe(SECRET_BYTES)
        record = KeyRecord(
            id=secrets.token_hex(ID_BYTES),
            owner_id=new.owner_id,
            name=new.name,
            role=new.role,
            scopes=sorted(new.permissions),
            digest=_digest(secret),
            created_at=now,
            expires_at=None if new.lifetime is None else now + new.lifetime,
            revoked_at=None,
        )
        await self.store.add(record)
        return record, f"{PREFIX}{record.id}_{secret}"

    async def caller(self, key: str) -> Caller | None:
        """Whoever was given this key; None if it is unknown, expired or revoked."""
        key_id, _, secret = key.removeprefix(PREFIX).partition("_")
        record = await self.store.find(key_id)
        if record is None or not record.valid or not compare_digest(_digest(secret), record.digest):
            return None
        return Caller(
            owner_id=record.owner_id,
            role=Role(record.role),
            permissions=frozenset(Permission(scope) for scope in record.scopes),
            key_id=record.id,
            expires=record.expires_at,
        )

    async def holds(self, key_id: str) -> bool:
        """Whether a key is still worth something."""
        record = await self.store.find(key_id)
        return record is not None and record.valid


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
