"""Who may do what in Postgres: one role migrates and owns the tables, another serves.

The serving role makes and changes no tables, and neither changes nor deletes what only grows: the
ledger, the audit, the prices. `migrate` brings the schema up to date and gives it its rights;
`complaints` tells what a role has too little or too much of.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import LiteralString

import psycopg
from msgspec import Struct
from psycopg import sql

from tollway.database.migrate import apply_postgres
from tollway.database.postgres import PostgresDatabase, database_name, reason
from tollway.errors import StartError

MIGRATION_LOCK = 7_405_601

GRANTS: Mapping[str, tuple[LiteralString, ...]] = {
    "accounts": ("SELECT", "INSERT", "UPDATE"),
    "tokens": ("SELECT", "INSERT", "UPDATE"),
    "prices": ("SELECT", "INSERT"),
    "instances": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "holds": ("SELECT", "INSERT", "UPDATE"),
    "credit_leases": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "ledger": ("SELECT", "INSERT"),
    "usage": ("SELECT", "INSERT", "UPDATE"),
    "checkpoints": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "idempotency": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "audit": ("SELECT", "INSERT"),
    "changes": ("SELECT", "INSERT", "DELETE"),
    "signing_keys": ("SELECT", "INSERT"),
    "_yoyo_migration": ("SELECT",),
}
"""What the serving role needs, table by table, and all that it gets."""

ONLY_GROWING = ("ledger", "audit", "prices")

log = logging.getLogger("tollway.database")


class Migrated(Struct, frozen=True):
    """`applied` are the migrations that were missing, `serving_role` who got the rights to
    serve."""

    database: str
    applied: list[str]
    serving_role: str | None


def migrate(url: str, serving_role: str | None) -> Migrated:
    """One at a time, however many are started. Raises `StartError`."""
    name = database_name(url)
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            connection.execute("SET lock_timeout = '60s'")
            _require_owner(connection, name)
            connection.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
            applied = apply_postgres(url)
            if serving_role is not None and serving_role != connection.info.user:
                _grant(connection, serving_role)
    except psycopg.Error as error:
        raise StartError(f"The database {name} cannot be migrated: {reason(error)}.") from None
    return Migrated(name, applied, serving_role)


def _require_owner(connection: "psycopg.Connection[tuple[object, ...]]", name: str) -> None:
    """Else yoyo fails in the middle, with words that do not say whose right is missing."""
    may_create = "SELECT has_schema_privilege(current_schema(), 'CREATE')"
    if connection.execute(may_create).fetchone() == (True,):
        return
    raise StartError(
        f"The role {connection.info.user} may not make tables in {name}. Give the role that owns "
        f"them: --database postgresql://OWNER:...@{name}, or TOLLWAY_MIGRATE_DATABASE."
    )


def _grant(connection: "psycopg.Connection[tuple[object, ...]]", role: str) -> None:
    known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone()
    if known is None:
        raise StartError(
            f"There is no role {role!r:.80} in the database. Make it first: "
            "CREATE ROLE name LOGIN PASSWORD '...'."
        )
    grantee = sql.Identifier(role)
    schema = connection.execute("SELECT current_schema()").fetchone()
    assert schema is not None
    namespace = sql.Identifier(str(schema[0]))
    with connection.transaction():
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(namespace, grantee))
        for table, rights in GRANTS.items():
            at = sql.Identifier(table)
            connection.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(at, grantee))
            listed = sql.SQL(", ").join(sql.SQL(right) for right in rights)
            connection.execute(sql.SQL("GRANT {} ON {} TO {}").format(listed, at, grantee))


async def complaints(database: PostgresDatabase) -> tuple[list[str], list[str]]:
    """What the role that is connected lacks to serve, and what it could do beyond that."""
    needed = [(table, right) for table, rights in GRANTS.items() for right in rights]
    tables, rights = zip(*needed, strict=True)
    lacks = await database.fetch(_LACKING, (list(tables), list(rights)))
    beyond = await database.fetch(_BEYOND, (list(ONLY_GROWING),) * 2)
    return [why for (why,) in lacks], [why for (why,) in beyond]


_LACKING = """
SELECT 'no ' || verb || ' on ' || name FROM unnest(?::text[], ?::text[]) AS needed (name, verb)
 WHERE NOT has_table_privilege(name, verb)"""

_BEYOND = """
SELECT 'it is a superuser' FROM pg_roles WHERE rolname = current_user AND rolsuper
UNION ALL
SELECT 'it may make tables' WHERE has_schema_privilege(current_schema(), 'CREATE')
UNION ALL
SELECT 'it owns the table ' || tablename FROM pg_tables
 WHERE tablename = ANY (?::text[]) AND schemaname = current_schema()
   AND pg_has_role(current_user, tableowner, 'USAGE')
UNION ALL
SELECT 'it may ' || verb || ' ' || name
  FROM unnest(?::text[]) AS name, unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) AS verb
 WHERE has_table_privilege(name, verb)"""


def shown(lacks: list[str], beyond: list[str]) -> Iterator[str]:
    for why in lacks:
        yield f"the serving role has {why}: run `tollway migrate` with --serving-role"
    for why in beyond:
        yield f"the serving role can do more than it needs: {why}"
