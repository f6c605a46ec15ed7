"""Random values that are drawn once and hold for as long as the database does."""

import secrets

from storage.database import Database
from storage.tables import Secret

SECRET_BYTES = 32


async def secret(database: Database, name: str) -> bytes:
    """The secret of this name, drawn when it is first asked for."""
    async with database.write() as session:
        known = await session.get(Secret, name)
        if known is not None:
            return known.value
        drawn = secrets.token_bytes(SECRET_BYTES)
        session.add(Secret(name=name, value=drawn))
        return drawn
