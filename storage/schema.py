"""The database file before anybody uses it: is it sound, is it ours, how old is it, and its migration."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, NullPool, create_engine

from storage.durable import sync_folder
from storage.errors import DatabaseDamaged, DatabaseTooNew

DATABASE_NAME = "darkroom.db"
MIGRATIONS = Path(__file__).parent / "migrations"
SOUND = "ok"  # what quick_check answers when it finds nothing wrong


@dataclass(frozen=True)
class DatabaseReport:
    """What a look at a database file found; `revision` and `quick_check` are None where there is no file."""

    path: Path
    exists: bool
    revision: str | None
    head: str
    sqlite_version: str
    quick_check: str | None


def inspect_database(folder: Path) -> DatabaseReport:
    """Look at the database in `folder` without writing to it, also while a server uses it."""
    path = folder / DATABASE_NAME
    exists = path.exists()
    revision, quick_check = _read_state(path) if exists else (None, None)
    return DatabaseReport(path, exists, revision, _head(), sqlite3.sqlite_version, quick_check)


def migrate(report: DatabaseReport) -> None:
    """Make the inspected database, or bring it to the newest revision: wholly or not at all.

    An old one is copied first, to `<name>.before-<revision>`.
    Raises DatabaseDamaged or DatabaseTooNew before anything is written.
    """
    _refuse_what_is_not_ours(report)
    if not report.exists:
        with _whole_or_absent(report.path) as unfinished:
            _upgrade(unfinished)
    elif report.revision != report.head:
        _back_up(report.path, report.head)
        _upgrade(report.path)


def _upgrade(path: Path) -> None:
    with _exclusive(path) as connection:
        config = _configuration()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _refuse_what_is_not_ours(report: DatabaseReport) -> None:
    if not report.exists:
        return
    if report.quick_check != SOUND:
        raise DatabaseDamaged(report.path, report.quick_check or "it cannot be read")
    if report.revision is None:
        raise DatabaseDamaged(report.path, "it is not a Darkroom database")
    if report.revision not in _known_revisions():
        raise DatabaseTooNew(report.path, report.revision, report.head)


def _read_state(path: Path) -> tuple[str | None, str]:
    """The file's revision, and quick_check's first complaint on one line or the reason why it could not be asked."""
    try:
        # Read-only, so it cannot checkpoint: SQLite 3.7.0 to 3.51.2 may corrupt a file that two
        # connections checkpoint.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            (quick_check,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            return _read_revision(connection), " ".join(quick_check.split())
    except sqlite3.Error as error:
        return None, str(error)


def _read_revision(connection: sqlite3.Connection) -> str | None:
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE name = 'alembic_version'").fetchall()
    if not tables:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def _back_up(path: Path, revision: str) -> None:
    target = path.with_name(f"{path.name}.before-{revision}")
    with (
        _whole_or_absent(target) as unfinished,
        closing(sqlite3.connect(path)) as source,
        closing(sqlite3.connect(unfinished)) as copy,
    ):
        source.backup(copy)


@contextmanager
def _whole_or_absent(target: Path) -> Iterator[Path]:
    """A path to write a database to; the finished file then takes the target's name."""
    folder = target.parent / "unfinished"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed start left behind
    folder.mkdir(mode=0o700)
    try:
        unfinished = folder / target.name
        unfinished.touch(mode=0o600)  # SQLite gives the files it adds beside it the same permissions
        yield unfinished
        unfinished.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _exclusive(path: Path) -> Iterator[Connection]:
    """One transaction, holding the write lock from the start; SQLite rolls schema changes back as well."""
    url = URL.create("sqlite", database=str(path))
    engine = create_engine(url, poolclass=NullPool, connect_args={"isolation_level": None})
    with engine.begin() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


def _configuration() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _head() -> str:
    head = ScriptDirectory.from_config(_configuration()).get_current_head()
    assert head is not None, "the package ships at least one revision"
    return head


def _known_revisions() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_configuration()).walk_revisions()}
