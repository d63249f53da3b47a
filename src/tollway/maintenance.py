"""What `tollway check` and `tollway migrate` do to the servers that keep things: looks, migrations,
and the move from SQLite to Postgres."""

import contextlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from tollway.database.data_directory import (
    DATABASE_FILE,
    MOVED_FILE,
    look_into,
    require_not_moved,
)
from tollway.database.sqlite import connect
from tollway.errors import Refused
from tollway.settings import Settings, StoreAddress
from tollway.store import open_postgres, open_store

if TYPE_CHECKING:
    from tollway.database.rights import Migrated
    from tollway.ledger.postgres.move import Moved


def check_data_directory(settings: Settings) -> None:
    """Raises `StartError` where this user may not look into it. It need not be there yet."""
    look_into(settings.server.data_dir)


def check_file(settings: Settings) -> None:
    """Raises `StartError` where what the SQLite file had is in Postgres by now."""
    if not settings.server.database.scheme:
        require_not_moved(settings.server.data_dir)


def check_model_file(settings: Settings) -> None:
    """Raises `StartError` where a model of the operator's own is no GGUF file."""
    from tollway.upstreams.embedded.model_file import own_model

    if settings.serves_embedded and settings.embedded.gguf is not None:
        own_model(settings.embedded.gguf)


async def check_database(settings: Settings) -> tuple[str | None, list[str]]:
    """Why the configured database could not be served from (None: it could), and what its role
    could do that it need not. Raises `StartError` where it cannot be reached."""
    from tollway.database.postgres import PostgresDatabase
    from tollway.database.rights import complaints, shown

    database = PostgresDatabase(settings.server.database.reveal())
    await database.open()
    try:
        lacks, beyond = await complaints(database)
    finally:
        await database.close()
    return next(shown(lacks, []), None), list(shown([], beyond))


async def check_rate_store(settings: Settings) -> str:
    """The name and version of the configured server. Raises `StartError` where it cannot be
    used."""
    from tollway.rates.valkey import probe

    return await probe(settings.server.rate_store.reveal())


def migrate_database(
    settings: Settings, address: StoreAddress | None, serving_role: str | None
) -> "Migrated":
    """`address` is the migrating role's, None: the one that serves. The role of the settings' own
    address is the one that gets the rights where none is named. Raises `StartError`."""
    from tollway.database.rights import migrate

    server = settings.server
    if address is None:
        address = server.database
    if not address.scheme:
        raise Refused(
            "There is nothing to migrate: a SQLite file is migrated by each start. Give server."
            "database, or --database."
        )
    if serving_role is None and server.database.scheme:
        serving_role = urlsplit(server.database.reveal()).username
    return migrate(address.reveal(), serving_role)


async def move_to_postgres(settings: Settings) -> "Moved":
    """All that the SQLite file of the data directory has, to the configured Postgres. The file is
    renamed then, so that nobody serves from it by mistake. Raises `Refused` and `StartError`."""
    from tollway.ledger.postgres.move import move_from_sqlite

    server = settings.server
    if not server.database.scheme:
        raise Refused("Say where to: set server.database to postgresql://...")
    look_into(server.data_dir)
    path = server.data_dir / DATABASE_FILE
    if not path.exists():
        if (moved := path.with_name(MOVED_FILE)).exists():
            raise Refused(f"It was moved before: {moved} is the file of then. Nothing was done.")
        raise Refused(f"There is no SQLite file in {server.data_dir}. Check --data-dir.")
    from_file = msgspec.structs.replace(server, database=StoreAddress("sqlite"))
    as_file = msgspec.structs.replace(settings, server=from_file)
    # Opened as a start opens it: what a crash left is settled first.
    async with open_store(as_file, for_serving=False) as store:
        database = await open_postgres(settings)
        try:
            with contextlib.closing(connect(path)) as connection:
                key = store.signing_key.private_pem()
                moved = await move_from_sqlite(connection, database, key)
        finally:
            await database.close()
    path.rename(path.with_name(MOVED_FILE))
    return moved
