"""Turns what SQLite and its drivers raise into the typed errors of this package."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from storage.errors import DatabaseBusy, DatabaseDamaged, DiskFault, DiskFull, StorageError


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raise the typed error in place of a database error that has one; let every other pass."""
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseBusy from error
    except (DBAPIError, sqlite3.Error) as error:
        typed = _typed(error.orig if isinstance(error, DBAPIError) else error)
        if typed is None:
            raise
        raise typed from error


def _typed(error: BaseException | None) -> StorageError | None:
    extended = getattr(error, "sqlite_errorcode", None)
    if extended is None:
        return None
    match extended & 0xFF:  # the low byte is the primary result code
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return DatabaseBusy()
        case sqlite3.SQLITE_FULL:
            return DiskFull()
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN:
            return DiskFault(str(error))
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return DatabaseDamaged(None, str(error))
    return None
