"""Brings a database's schema up to this program's, forwards only; yoyo does the work and keeps the
record.

Whoever migrates a SQLite file holds the lock of its data directory; Postgres is locked with an
advisory lock. So yoyo's own lock, which a killed process leaves behind, is not taken.

yoyo is imported where there is something to migrate: most starts have no use for it.
"""
# yoyo has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

import sqlite3
from contextlib import closing
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tollway.errors import StartError

# yoyo writes a datetime through sqlite3's default adapter, which is deprecated from Python 3.12 on.
sqlite3.register_adapter(datetime, lambda moment: moment.isoformat(" "))

_MIGRATIONS = Path(__file__).with_name("migrations") / "sqlite"
_POSTGRES_MIGRATIONS = Path(__file__).with_name("migrations") / "postgres"


def migrate_sqlite(path: Path) -> None:
    """Raises `StartError` where the file was written by a newer Tollway."""
    if is_current(path):
        return
    from yoyo import get_backend, read_migrations

    migrations = read_migrations(str(_MIGRATIONS))
    # yoyo makes a URI of the path: a directory may have a space, # or ? in its name.
    backend = get_backend(f"sqlite:///{quote(str(path))}")
    try:
        known: set[str] = {migration.id for migration in migrations}
        require_known(f"The database {path}", _applied(backend), known)
        backend.apply_migrations(backend.to_apply(migrations))
    finally:
        backend.connection.close()


def is_current(path: Path) -> bool:
    """Whether the file has all migrations of this version and no others. Raises `OSError` where it
    cannot be looked at, and `StartError` where it is no database."""
    if not path.exists() or not path.stat().st_size:
        return False
    try:
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT migration_id FROM _yoyo_migration").fetchall()
    except sqlite3.OperationalError:  # the table is not there yet, or the file is another's
        return False
    except sqlite3.DatabaseError as error:
        raise StartError(
            f"The database {path} cannot be opened: {error}. Put a backup in its place, or "
            "move it away: the next start then makes an empty one."
        ) from error
    return {id_ for (id_,) in rows} == set(_names(_MIGRATIONS))


def apply_postgres(url: str) -> list[str]:
    """Applies what is missing, and returns its names. The caller holds the advisory lock. Raises
    `StartError` where the database was written by a newer Tollway."""
    from yoyo import get_backend, read_migrations

    migrations = read_migrations(str(_POSTGRES_MIGRATIONS))
    backend = get_backend("postgresql+psycopg://" + url.partition("://")[2])
    try:
        known: set[str] = {migration.id for migration in migrations}
        require_known("The database", _applied(backend), known)
        missing = backend.to_apply(migrations)
        names = [migration.id for migration in missing]
        backend.apply_migrations(missing)
    finally:
        backend.connection.close()
    return names


@lru_cache(maxsize=1)
def postgres_migrations() -> tuple[str, ...]:
    """The names of this version's migrations, in their order."""
    return _names(_POSTGRES_MIGRATIONS)


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(
            file.name.rpartition(".")[0]
            for file in folder.iterdir()
            if file.name.endswith((".sql", ".py"))
        )
    )


def require_known(name: str, applied: set[str], known: set[str]) -> None:
    """Raises `StartError` where the database was written by a newer Tollway."""
    if newer := sorted(applied - known):
        raise StartError(
            f"{name} was written by a newer Tollway (it has {', '.join(newer)}). Install that "
            "version or a later one, or use another database."
        )


def _applied(backend: Any) -> set[str]:
    """Any: yoyo has no types."""
    if "_yoyo_migration" not in backend.list_tables():
        return set()
    return {row[0] for row in backend.execute("SELECT migration_id FROM _yoyo_migration")}


@lru_cache(maxsize=1)
def sqlite_schema() -> dict[tuple[str, str], str]:
    """The SQL of each table, index and trigger as a file of this version has it, by type and name.
    Migrations that are programs do for older files what the SQL says for new ones."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for migration in sorted(_MIGRATIONS.iterdir(), key=lambda file: file.name):
            if migration.name.endswith(".sql"):
                connection.executescript(migration.read_text(encoding="utf-8"))
        rows = connection.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        ).fetchall()
    return {(kind, name): sql for kind, name, sql in rows}
