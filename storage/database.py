"""The open database: the claim on its folder, the one write connection, the readers, every transaction."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

from sqlalchemy import URL, Connection, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from storage.lock import FolderLock
from storage.schema import inspect_database, migrate
from storage.translation import typed_errors

READER_COUNT = 4
READER_PATIENCE = 30.0  # seconds until one that waits for a connection hears that the database is busy
LEAVES_EVENTS = "leaves_events"
"""What a session's `info` says of a transaction after which there are events to deliver."""

BUSY_TIMEOUT = "PRAGMA busy_timeout = 5000"  # milliseconds
# FULL costs an fsync per commit and is what makes an acknowledged job survive a power cut.
WRITER_PRAGMAS = (
    BUSY_TIMEOUT,
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)
# Only the writer may checkpoint: SQLite 3.7.0 to 3.51.2 may corrupt the file when two connections do.
READER_PRAGMAS = (BUSY_TIMEOUT, "PRAGMA query_only = ON", "PRAGMA wal_autocheckpoint = 0")


class Database:
    """One SQLite database, open for as long as this process serves from its folder."""

    def __init__(self, path: Path, lock: FolderLock) -> None:
        self.events_written = asyncio.Event()
        """Set after each commit that left something to deliver; who delivers clears it."""
        self._lock = lock
        # No time limit on the write connection: a writer waits for its turn instead of failing.
        self._writer = _engine(path, WRITER_PRAGMAS, "BEGIN IMMEDIATE", connections=1, patience=None)
        self._readers = _engine(path, READER_PRAGMAS, "BEGIN", connections=READER_COUNT, patience=READER_PATIENCE)
        self._write_session = async_sessionmaker(self._writer, class_=AsyncSession, expire_on_commit=False)
        self._read_session = async_sessionmaker(self._readers, class_=AsyncSession)

    @classmethod
    async def open(cls, folder: Path) -> Self:
        """Claim `folder`, check its database, migrate it and open it; a new folder gets a new database.

        Raises FolderUnusable, FolderInUse, DatabaseDamaged, DatabaseTooNew, DatabaseBusy, DiskFull
        or DiskFault.
        """
        lock = await asyncio.to_thread(FolderLock.take, folder)
        try:
            with typed_errors():
                path = await asyncio.to_thread(_prepare, folder)
                database = cls(path, lock)
                await database._connect_writer()
        except BaseException:
            lock.release()
            raise
        return database

    async def close(self) -> None:
        """Close every connection, the writer last (it folds the WAL into the file), and free the folder."""
        await self._readers.dispose()
        await self._writer.dispose()
        self._lock.release()

    @property
    def sqlite_version(self) -> str:
        return sqlite3.sqlite_version

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction that may write: one at a time, committed at the end, rolled back on an error.

        It holds SQLite's write lock from the start, so what it reads is still true when it writes.
        Raises DatabaseBusy, DiskFull or DiskFault; nothing was written then.
        """
        with typed_errors():
            try:
                async with self._write_session.begin() as session:
                    await session.connection()
                    yield session
            finally:  # a commit that was begun is carried out, whether or not its caller is cancelled meanwhile
                if session.info.get(LEAVES_EVENTS):
                    self.events_written.set()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A transaction that sees one state of the database throughout and cannot write."""
        with typed_errors():
            async with self._read_session() as session:
                yield session

    async def _connect_writer(self) -> None:
        """Open the connection while nobody waits for it: a failure must reach the caller of `open`."""
        try:
            async with self._writer.connect():
                pass
        except BaseException:
            await self._writer.dispose()
            raise


def _prepare(folder: Path) -> Path:
    report = inspect_database(folder)
    migrate(report)
    return report.path


def _engine(
    path: Path, pragmas: tuple[str, ...], begin: str, *, connections: int, patience: float | None
) -> AsyncEngine:
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(path)),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=patience,
        connect_args={"isolation_level": None},
        hide_parameters=True,  # errors are logged, and prompts and secrets are none of the log's
    )

    @event.listens_for(engine.sync_engine, "connect")
    def apply_pragmas(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_explicitly(connection: Connection) -> None:
        # Python's own sqlite3 transactions are DEFERRED: one that reads and then writes fails at once,
        # without waiting, when another process wrote in between.
        connection.exec_driver_sql(begin)

    @event.listens_for(engine.sync_engine, "invalidate")
    def let_go(connection: DBAPIConnection, _record: object, _error: BaseException | None) -> None:
        # Given up when its user was cancelled within a statement. A cursor may outlive that, and with it, closed or
        # not, the transaction and its lock; so that is ended first.
        with suppress(sqlite3.Error):
            connection.rollback()

    return engine
