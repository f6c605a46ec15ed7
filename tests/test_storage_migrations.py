"""Migrations: they make what the models say, keep a copy of what was there, and do all or nothing."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine
from sqlmodel import SQLModel

import storage.schema
from storage.database import Database
from storage.jobs import JobStore
from storage.schema import DATABASE_NAME, inspect_database
from tests.storage_fakes import new_job, opened

pytestmark = pytest.mark.anyio

HEAD = inspect_database(Path("nowhere")).head

NEXT = """
from alembic import op
import sqlalchemy as sa
revision = "next"
down_revision = "{head}"
def upgrade() -> None:
    op.add_column("jobs", sa.Column("note", sa.String()))
""".replace("{head}", HEAD)


@contextmanager
def _connected(path: Path) -> Iterator[Connection]:
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def _schema(path: Path) -> set[str]:
    statements = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name <> 'alembic_version'"
    with closing(sqlite3.connect(path)) as connection:
        return {_normal(sql) for (sql,) in connection.execute(statements)}


def _normal(sql: str) -> str:
    """A statement whose columns and constraints stand in one order."""
    head, _, body = " ".join(sql.split()).partition("(")
    return f"{head}({','.join(sorted(part.strip() for part in body.removesuffix(')').split(', ')))})"


async def test_the_migrations_make_what_the_models_say(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    with _connected(tmp_path / "darkroom.db") as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata) == []
    with _connected(tmp_path / "models.db") as connection:
        SQLModel.metadata.create_all(connection)
        connection.commit()
    assert _schema(tmp_path / "darkroom.db") == _schema(tmp_path / "models.db")


@pytest.fixture
def add_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the migrations into which a test writes the next one."""
    copy = tmp_path / "100% migrations"
    shutil.copytree(storage.schema.MIGRATIONS, copy)
    monkeypatch.setattr(storage.schema, "MIGRATIONS", copy)
    yield copy / "versions" / "revision_next.py"


async def test_an_old_database_is_copied_and_migrated(tmp_path: Path, add_revision: Path) -> None:
    folder = tmp_path / "data"
    async with opened(folder) as database:
        job = await JobStore(database).insert(new_job())
    before = _schema(folder / "darkroom.db")
    add_revision.write_text(NEXT)
    async with opened(folder) as database:
        assert await JobStore(database).get("ann", job.id) == job
    assert inspect_database(folder).revision == "next"
    assert any("note" in sql for sql in _schema(folder / "darkroom.db"))
    copy = folder / "darkroom.db.before-next"
    assert _schema(copy) == before
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT id FROM jobs").fetchall() == [(job.id,)]
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (HEAD,)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert not (folder / "unfinished").exists()


async def test_a_migration_that_fails_half_way_changes_nothing(tmp_path: Path, add_revision: Path) -> None:
    folder = tmp_path / "data"
    async with opened(folder) as database:
        job = await JobStore(database).insert(new_job())
    before = _schema(folder / "darkroom.db")
    add_revision.write_text(f"{NEXT}    raise RuntimeError('half way')\n")
    with pytest.raises(RuntimeError, match="half way"):
        await Database.open(folder)
    assert _schema(folder / "darkroom.db") == before
    assert inspect_database(folder).revision == HEAD
    add_revision.write_text(NEXT)
    async with opened(folder) as database:
        assert await JobStore(database).get("ann", job.id) == job


async def test_a_database_of_the_first_revision_keeps_its_jobs(tmp_path: Path) -> None:
    path = tmp_path / DATABASE_NAME
    with storage.schema._exclusive(path) as connection:
        config = storage.schema._configuration()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    job = {
        "id": "j",
        "owner_id": "ann",
        "status": "completed",
        "priority": 0,
        "request": "{}",
        "prompt": "a lighthouse",
    }
    job |= {"negative_prompt": "", "model": "demo", "image_count": 1, "attempts": 1, "max_attempts": 3}
    job |= {"cost": 0.5, "created_at": 0}
    with closing(sqlite3.connect(path)) as connection:
        names = ", ".join(f'"{name}"' for name in job)
        connection.execute(f"INSERT INTO jobs ({names}) VALUES ({', '.join('?' * len(job))})", list(job.values()))
        connection.commit()
    async with opened(tmp_path) as database:
        kept = await JobStore(database).get("ann", "j")
    assert (kept.prompt, kept.cost, kept.losses, kept.outcome) == ("a lighthouse", 0.5, 0, None)
    assert inspect_database(tmp_path).revision == HEAD
