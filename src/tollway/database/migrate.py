"""Brings a database's schema up to this program's, forwards only; yoyo does the work and keeps the record.

The caller holds the lock of the data directory, so yoyo's own lock, which a killed process leaves behind, is not taken.
"""

from importlib.resources import as_file, files
from pathlib import Path

from yoyo import get_backend, read_migrations

from tollway.errors import StartError

_MIGRATIONS = files("tollway.database") / "migrations" / "sqlite"


def migrate_sqlite(path: Path) -> None:
    """Raises `StartError` where the file was written by a newer Tollway."""
    with as_file(_MIGRATIONS) as folder:
        migrations = read_migrations(str(folder))
        backend = get_backend(f"sqlite:///{path}")
        try:
            known = {migration.id for migration in migrations}
            applied = {
                row[0]
                for row in backend.execute(
                    "SELECT migration_id FROM _yoyo_migration"
                    if "_yoyo_migration" in backend.list_tables()
                    else "SELECT 1 WHERE 0"
                ).fetchall()
            }
            if newer := sorted(applied - known):
                raise StartError(
                    f"The database {path} was written by a newer Tollway (it has {', '.join(newer)}). "
                    "Install that version or a later one, or use another --data-dir."
                )
            backend.apply_migrations(backend.to_apply(migrations))
        finally:
            backend.connection.close()
