"""The database of many replicas: what it promises, who may do what in it, how it is migrated."""

import asyncio
import re
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing

import asyncpg  # pyright: ignore[reportMissingTypeStubs]
import psycopg
import pytest
from tests.support.postgres import MIGRATOR, PASSWORD, SERVER, PostgresServer
from tests.unit.database.database_suite import INSERT, DatabaseSuite, prices

from tollway.database.migrate import postgres_migrations, sqlite_schema
from tollway.database.postgres import PostgresDatabase, dollars
from tollway.database.rights import ONLY_GROWING, complaints, migrate
from tollway.errors import StartError, Unavailable
from tollway.ledger.postgres.move import SETTLED_BEFORE, TABLES


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[PostgresDatabase]:
    database = PostgresDatabase(database_url)
    await database.open()
    yield database
    await database.close()


# --- what is asked of a database ------------------------------------------------------------------


class TestPostgresDatabase(DatabaseSuite):
    no_such_table = asyncpg.UndefinedTableError


@pytest.mark.parametrize(
    ("sql", "translated"),
    [
        ("SELECT 1", "SELECT 1"),
        ("SELECT ? WHERE a = ? AND b = '?' AND \"c?\" = ?",
         "SELECT $1 WHERE a = $2 AND b = '?' AND \"c?\" = $3"),
        ("SELECT 'it''s ?', ?", "SELECT 'it''s ?', $1"),
    ],
)  # fmt: skip
def test_a_question_mark_is_a_parameter_outside_of_quotes(sql: str, translated: str) -> None:
    assert dollars(sql) == translated


async def test_a_killed_backend_is_replaced_at_the_next_use(
    database: PostgresDatabase, postgres: PostgresServer, database_url: str
) -> None:
    await database.execute((INSERT, ("a",)))
    _kill_backends(postgres, database_url)

    assert await prices(database) == ["a"]
    assert await database.execute((INSERT, ("b",))) == 1


async def test_what_is_read_does_not_meet_a_second_killed_backend(
    database: PostgresDatabase, postgres: PostgresServer, database_url: str
) -> None:
    await asyncio.gather(*(database.fetch("SELECT pg_sleep(0.2)") for _ in range(3)))
    _kill_backends(postgres, database_url)  # this loop has not seen yet that any has gone

    assert await database.fetch("SELECT 1") == [(1,)]


async def test_a_backend_killed_in_the_middle_of_a_write_is_told_as_unavailable(
    database: PostgresDatabase, postgres: PostgresServer, database_url: str
) -> None:
    with pytest.raises(Unavailable):
        await database.execute(
            (INSERT, ("a",)), ("SELECT pg_terminate_backend(pg_backend_pid())", ())
        )

    assert await prices(database) == []


async def test_nobody_listens_there(postgres: PostgresServer) -> None:
    url = f"postgresql://someone:{PASSWORD.replace('/', '%2F')}@127.0.0.1:1/tollway"

    with pytest.raises(StartError, match=r"127\.0\.0\.1:1/tollway cannot be used") as refusal:
        await PostgresDatabase(url).open()

    assert refusal.value.message.endswith(". Check server.database.")
    assert PASSWORD not in refusal.value.message
    assert "someone" not in refusal.value.message


async def test_a_wrong_password_is_told_without_the_password(
    postgres: PostgresServer, database_url: str
) -> None:
    wrong = database_url.replace("s3cret", "wr0ng")

    with pytest.raises(StartError, match="password authentication failed") as refusal:
        await PostgresDatabase(wrong).open()

    assert "wr0ng" not in refusal.value.message


# --- who may do what ------------------------------------------------------------------------------


async def test_the_serving_role_has_what_it_needs_and_no_more(database: PostgresDatabase) -> None:
    assert await complaints(database) == ([], [])


_ROWS = {
    "ledger": "'acc_1', 1, 'grant', 1, 1, 'r', '', 0, ''",
    "audit": "'audit_1', '', '', '', '', '', 0",
    "prices": "'price_1', 'm1', 1, 1, 0",
}


@pytest.mark.parametrize("table", ONLY_GROWING)
@pytest.mark.parametrize("verb", ["UPDATE {} SET created_at = 1", "DELETE FROM {}", "TRUNCATE {}"])
async def test_what_only_grows_is_changed_by_no_role(
    postgres: PostgresServer, database_url: str, table: str, verb: str
) -> None:
    name = database_url.rpartition("/")[2]
    with psycopg.connect(postgres.url(name, MIGRATOR), autocommit=True) as owner:
        owner.execute(f"INSERT INTO {table} VALUES ({_ROWS[table]})".encode())  # noqa: S608
        with pytest.raises(psycopg.errors.RestrictViolation):
            owner.execute(verb.format(table).encode())
    with (
        psycopg.connect(database_url, autocommit=True) as server,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        server.execute(verb.format(table).encode())


@pytest.mark.parametrize(
    "ddl",
    ["CREATE TABLE mine (a INT)", "ALTER TABLE ledger DISABLE TRIGGER ALL", "DROP TABLE audit"],
)
async def test_the_serving_role_makes_and_changes_no_tables(
    database: PostgresDatabase, ddl: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await database.execute((ddl, ()))


async def test_what_a_role_lacks_and_has_too_much_of_is_named(
    postgres: PostgresServer, database_url: str
) -> None:
    name = database_url.rpartition("/")[2]
    with psycopg.connect(postgres.url(name, MIGRATOR), autocommit=True) as owner:
        owner.execute(f"REVOKE INSERT ON ledger FROM {SERVER}".encode())
        owner.execute(f"GRANT DELETE ON audit TO {SERVER}".encode())
    database = PostgresDatabase(database_url)
    await database.open()

    lacks, beyond = await complaints(database)

    await database.close()
    assert (lacks, beyond) == (["no INSERT on ledger"], ["it may DELETE audit"])


async def test_the_owner_can_do_more_than_serving_needs(
    postgres: PostgresServer, database_url: str
) -> None:
    database = PostgresDatabase(postgres.url(database_url.rpartition("/")[2], MIGRATOR))
    await database.open()

    lacks, beyond = await complaints(database)

    await database.close()
    assert lacks == []
    assert "it owns the table ledger" in beyond


# --- migrating ------------------------------------------------------------------------------------


@pytest.fixture
def empty_url(postgres: PostgresServer) -> str:
    return postgres.url(postgres.new_database(empty=True), MIGRATOR)


async def test_a_database_without_tables_is_refused_and_says_what_to_do(empty_url: str) -> None:
    with pytest.raises(StartError, match="Run `tollway migrate`"):
        await PostgresDatabase(empty_url).open()


async def test_migrating_applies_what_is_missing_once(empty_url: str) -> None:
    first = migrate(empty_url, SERVER)
    again = migrate(empty_url, SERVER)

    assert first.applied == list(postgres_migrations())
    assert again.applied == []


async def test_of_many_that_migrate_at_once_one_does(empty_url: str) -> None:
    applied: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: applied.append(migrate(empty_url, SERVER).applied))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(map(bool, applied)) == [False, False, False, True]


async def test_a_database_of_before_gets_the_functions_of_a_new_one(empty_url: str) -> None:
    migrate(empty_url, SERVER)
    with psycopg.connect(empty_url, autocommit=True) as owner:
        now = _ledger_batch(owner)
        before = re.sub(r"available,\s+\(SELECT spend_cap[^)]+\)\)\);", "available));", now)
        owner.execute(before.encode())
        owner.execute("DELETE FROM _yoyo_migration WHERE migration_id LIKE '0003%'")

        migrate(empty_url, SERVER)

        assert before != now
        assert _ledger_batch(owner) == now


def _ledger_batch(owner: "psycopg.Connection[tuple[str]]") -> str:
    sql = "SELECT pg_get_functiondef('ledger_batch(text, json)'::regprocedure)"
    rows = owner.execute(sql).fetchall()
    return rows[0][0]


async def test_a_newer_schema_is_refused_by_migrating_and_by_serving(
    postgres: PostgresServer, database_url: str
) -> None:
    owner_url = postgres.url(database_url.rpartition("/")[2], MIGRATOR)
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute(
            "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc)"
            " VALUES ('x', '9999_later', now())"
        )

    with pytest.raises(StartError, match=r"newer Tollway.*9999_later"):
        migrate(owner_url, SERVER)
    with pytest.raises(StartError, match=r"newer Tollway.*9999_later"):
        await PostgresDatabase(database_url).open()


async def test_an_older_schema_is_refused_by_serving(
    postgres: PostgresServer, database_url: str
) -> None:
    last = postgres_migrations()[-1]
    owner_url = postgres.url(database_url.rpartition("/")[2], MIGRATOR)
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute("DELETE FROM _yoyo_migration WHERE migration_id = %s", (last,))

    with pytest.raises(StartError, match=rf"lacks {last}.*tollway migrate"):
        await PostgresDatabase(database_url).open()


async def test_a_serving_role_that_is_not_there_is_refused(empty_url: str) -> None:
    with pytest.raises(StartError, match="There is no role 'nobody_here'"):
        migrate(empty_url, "nobody_here")


@pytest.mark.parametrize("is_empty", [True, False])
async def test_migrating_with_the_serving_role_asks_for_the_owners(
    postgres: PostgresServer, is_empty: bool
) -> None:
    url = postgres.url(postgres.new_database(empty=is_empty))
    where = url.rpartition("@")[2]

    with pytest.raises(StartError) as refusal:
        migrate(url, SERVER)

    assert str(refusal.value) == (
        f"The role {SERVER} may not make tables in {where}. Give the role that owns them: "
        f"--database postgresql://OWNER:...@{where}, or TOLLWAY_MIGRATE_DATABASE."
    )


def _kill_backends(postgres: PostgresServer, url: str) -> None:
    with postgres.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            (url.rpartition("/")[2],),
        )


def test_a_move_knows_every_table_of_the_file() -> None:
    tables = {name for kind, name in sqlite_schema() if kind in ("table", "view")}

    assert tables == {*TABLES, *SETTLED_BEFORE}


async def test_tables_of_postgres_have_every_column_of_the_files(
    database: PostgresDatabase,
) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        for (kind, _), sql in sqlite_schema().items():
            if kind in ("table", "view"):
                connection.execute(sql)
        for table in TABLES:
            of_file = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            if table == "usage":  # how its hold ended is moved with `holds`, a view of the file's
                of_file -= await _columns(database, "holds") - {"created_at", "account_id"}
            assert of_file <= await _columns(database, table), table


async def _columns(database: PostgresDatabase, table: str) -> set[str]:
    rows = await database.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_name = ?", (table,)
    )
    return {name for (name,) in rows}
