"""Where `darkroom keys` makes, lists and revokes keys: at the server that uses the data folder, or in its database."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from server.identity.keys import KeyFacts, Keys, MadeKey, NewKey, cancel_jobs_of, key_facts
from server.identity.local_pass import LocalPass
from server.remote import Remote, Unreachable
from storage.database import Database
from storage.job_lists import JobLists
from storage.jobs import JobStore
from storage.keys import KeyStore
from storage.schema import DATABASE_NAME

T = TypeVar("T")


class KeyDesk:
    """Keys by the data folder whose people they are for. Each verb raises Unreachable and StorageError.

    `auth` is how the server that uses the folder knows people; None while none runs. Only `create` makes a database.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._server, self.auth = _server_of(folder)

    def create(self, new: NewKey) -> MadeKey:
        """A new key's facts, and the key itself."""
        if self._server is not None:
            return cast(MadeKey, self._server.ask("/api/v1/keys", "POST", _body(new)))
        record, key = _offline(self.folder, lambda database: Keys(KeyStore(database)).issue(new))
        return MadeKey(**key_facts(record), key=key)

    def all(self, owner_id: str | None) -> list[KeyFacts]:
        """An owner's keys, or everybody's, the newest first."""
        if self._server is not None:
            keys = self._server.ask("/api/v1/keys")["keys"]
            return [key for key in keys if owner_id in (None, key["owner"])]
        found = self._there(lambda database: KeyStore(database).all(owner_id))
        return [key_facts(record) for record in found]

    def revoke(self, key_id: str) -> KeyFacts:
        """End a key, and the jobs that came with it."""
        if self._server is not None:
            return cast(KeyFacts, self._server.ask(f"/api/v1/keys/{key_id}", "DELETE"))

        async def end(database: Database) -> KeyFacts:
            record = await KeyStore(database).revoke(key_id)
            await cancel_jobs_of(record, JobLists(database), JobStore(database).cancel)
            return key_facts(record)

        return self._there(end)

    def _there(self, verb: Callable[[Database], Awaitable[T]]) -> T:
        """Look into the database of a folder that has one."""
        if not os.path.exists(self.folder / DATABASE_NAME):  # also where this user may not look
            where = f"No server answers for {self.folder}, and no database can be read there"
            raise Unreachable(f"{where}: let DARKROOM_DATA name the folder that your server uses.")
        return _offline(self.folder, verb)


def _offline(folder: Path, verb: Callable[[Database], Awaitable[T]]) -> T:
    async def opened() -> T:
        database = await Database.open(folder)
        try:
            return await verb(database)
        finally:
            await database.close()

    return asyncio.run(opened())


def _server_of(folder: Path) -> tuple[Remote | None, str | None]:
    """The server that uses this folder, and how it knows people; None if none answers."""
    known = LocalPass.read(folder)
    if known is None:
        return None, None
    remote = Remote(known.url, known.token)
    try:
        return remote, str(remote.ask("/api/v1/me")["auth"])
    except Unreachable:
        return None, None  # it was killed, and left its pass behind; if it lives after all, the folder's lock says so


def _body(new: NewKey) -> dict[str, Any]:
    days = None if new.lifetime is None else new.lifetime.days
    permissions = sorted(new.permissions)
    return {"owner": new.owner_id, "name": new.name, "role": new.role, "permissions": permissions, "days": days}
