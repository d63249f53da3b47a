"""Moves an installation from its SQLite file to Postgres: every row as it is, in one transaction
that is only committed if the ledger is whole where it arrives.

The file is read in one snapshot; whoever calls has the lock of its data directory, and has settled
what a crash left in it. The hash chains come along as they are, so that a receipt that was signed
before still names its entry.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from tollway.database.postgres import Connection, PostgresDatabase
from tollway.errors import Refused, how_many
from tollway.ledger.postgres.verify import verify
from tollway.ledger.verify import verify as verify_file

TABLES = ("accounts", "tokens", "prices", "holds", "ledger", "usage", "idempotency", "audit")
SETTLED_BEFORE = ("checkpoints", "unfiled")
"""What a start settles into the tables above, and leaves empty."""
_ROWS_PER_BLOCK = 10_000


class Moved(Struct, frozen=True):
    """Rows of each table, and the credits of all accounts together."""

    rows: dict[str, int]
    credits: int


async def move_from_sqlite(
    connection: sqlite3.Connection, database: PostgresDatabase, signing_key: str
) -> Moved:
    """Raises `Refused` where either ledger is not whole, or Postgres has accounts already."""
    connection.execute("BEGIN")
    try:
        _require_whole("The SQLite file", verify_file(connection))
        for table in SETTLED_BEFORE:
            (left,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
            assert left == 0, f"{table} was settled when the file was opened"
        async with database.long_transaction() as target:
            if await target.fetchval("SELECT EXISTS (SELECT 1 FROM accounts)"):
                raise Refused(
                    f"The database {database.name} has accounts already. Move into one that is "
                    "new: what two installations charged cannot be told apart afterwards."
                )
            rows = {table: await _copy(connection, target, table) for table in TABLES}
            await target.execute(
                "INSERT INTO signing_keys (id, pem, created_at) VALUES ('moved', $1, 0)",
                signing_key,
            )
            _require_whole("The ledger in Postgres", await verify(target))
            credits = await target.fetchval(
                "SELECT COALESCE(SUM(balance), 0)::bigint FROM accounts"
            )
            ((before,),) = connection.execute("SELECT COALESCE(SUM(balance), 0) FROM accounts")
            if credits != before:
                raise AssertionError(f"{before} credits were moved, and {credits} arrived")
    finally:
        connection.execute("ROLLBACK")
    return Moved(rows, credits)


async def _copy(connection: sqlite3.Connection, target: Connection, table: str) -> int:
    theirs = await target.fetch(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_name = $1 AND table_schema = current_schema()",
        table,
    )
    there = {column for (column,) in theirs}
    # Of a hold that has ended the file keeps all in its usage: `holds` is a view there.
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    columns = [column for column in columns if column in there]
    names = ", ".join(columns)
    cursor = connection.execute(f"SELECT {names} FROM {table}")  # noqa: S608 (ours)
    count = 0
    for block in _blocks(cursor):
        await target.copy_records_to_table(table, records=block, columns=columns)
        count += len(block)
    return count


def _blocks(cursor: sqlite3.Cursor) -> Iterator[list[tuple[Any, ...]]]:
    while rows := cursor.fetchmany(_ROWS_PER_BLOCK):
        yield [tuple(_portable(value) for value in row) for row in rows]


def _portable(value: Any) -> Any:
    """Postgres has no zero bytes in its text. Any: a column's value."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _require_whole(what: str, violations: Sequence[Any]) -> None:
    """Any: violations of either ledger."""
    if violations:
        first = violations[0]
        raise Refused(
            f"{what} is not whole, so nothing was moved: "
            f"{how_many(len(violations), 'violation')}, the first of the rule {first.check!r} at "
            f"{first.row}: {first.message}."
        )
