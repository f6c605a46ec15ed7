"""What an operator turned on or off; it outlasts the server's run."""

from sqlmodel import select

from storage.database import Database
from storage.tables import Switch


class Switches:
    """Each is off until somebody turns it on."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> bool:
        async with self._database.read() as session:
            return bool((await session.exec(select(Switch.enabled).where(Switch.name == name))).one_or_none())

    async def set(self, name: str, enabled: bool) -> None:
        async with self._database.write() as session:
            await session.merge(Switch(name=name, enabled=enabled))
