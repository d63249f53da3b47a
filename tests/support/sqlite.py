"""A SQLite database that has its tables. One is migrated, and the others are copies of it, as with
Postgres: migrations take a hundred times what most tests do with their database."""

import tempfile
from functools import cache
from pathlib import Path

from tollway.database.migrate import migrate_sqlite


def migrated(path: Path) -> Path:
    """The path, once there is a database; one that is there stays as it is."""
    if not path.exists():
        path.touch(0o600)
        path.write_bytes(_empty_tables())
    return path


@cache
def _empty_tables() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tollway.db"
        migrate_sqlite(path)
        return path.read_bytes()
