"""The keys that people were given: whose each is, what it is good for, and the digest of its secret."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from sqlmodel import col, select

from storage.database import Database
from storage.errors import KeyNotFound
from storage.records import KeyRecord
from storage.tables import ApiKey


class KeyStore:
    """Keys by id. A revoked one stays, for the figures that were kept under it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, key: KeyRecord) -> None:
        """It is on the disk when this returns."""
        async with self._database.write() as session:
            session.add(ApiKey(**asdict(key)))

    async def find(self, key_id: str) -> KeyRecord | None:
        """A key, whatever became of it."""
        async with self._database.read() as session:
            found = await session.get(ApiKey, key_id)
            return None if found is None else KeyRecord(**found.model_dump())

    async def all(self, owner_id: str | None = None) -> Sequence[KeyRecord]:
        """An owner's keys, or everybody's, the newest first."""
        statement = select(ApiKey).order_by(col(ApiKey.created_at).desc(), col(ApiKey.id))
        if owner_id is not None:
            statement = statement.where(ApiKey.owner_id == owner_id)
        async with self._database.read() as session:
            return [KeyRecord(**key.model_dump()) for key in await session.exec(statement)]

    async def revoke(self, key_id: str) -> KeyRecord:
        """End a key; to one that is ended nothing more is done. Raises KeyNotFound."""
        async with self._database.write() as session:
            key = await session.get(ApiKey, key_id)
            if key is None:
                raise KeyNotFound(key_id)
            key.revoked_at = key.revoked_at or datetime.now(UTC)
        return KeyRecord(**key.model_dump())
