# yoyo has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import asyncio
import json
import os
import sqlite3
import threading
from contextlib import closing
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import astuple
from tests.unit.database.database_suite import INSERT, DatabaseSuite, prices
from yoyo import get_backend, read_migrations

from tollway.database.migrate import sqlite_schema
from tollway.database.sqlite import SqliteDatabase
from tollway.errors import Refused, StartError, Unavailable
from tollway.ledger.charges import read_unfiled

A_LONG_READ = """
WITH RECURSIVE n (i) AS (SELECT begun() UNION ALL SELECT i + 1 FROM n WHERE i < 2000000)
SELECT COUNT(*) FROM n"""

INSERT_A_MEGABYTE = """
INSERT INTO idempotency (account_id, key, body_digest, request_id, reply, created_at)
VALUES ('acc_1', ?, x'', 'req_1', zeroblob(1000000), 0)"""


class TestSqliteDatabase(DatabaseSuite):
    no_such_table = sqlite3.OperationalError


async def test_a_fault_of_the_program_is_no_fault_of_the_disk(database: SqliteDatabase) -> None:
    with pytest.raises(sqlite3.OperationalError):
        await database.execute(("INSERT INTO nothing VALUES (1)", ()))
    with pytest.raises(sqlite3.OperationalError):
        await database.fetch("SELECT 1 FROM nothing")

    assert database.fault is None


async def test_of_two_that_may_not_both_be_written_the_later_is_refused(
    database: SqliteDatabase,
) -> None:
    answers = await asyncio.gather(
        *(database.execute((INSERT, (id_,))) for id_ in "abacb"), return_exceptions=True
    )

    assert [isinstance(answer, Refused) for answer in answers] == [False, False, True, False, True]


async def test_a_number_too_large_for_a_column_is_told_to_its_writer_alone(
    database: SqliteDatabase,
) -> None:
    answers = await asyncio.gather(
        database.execute((INSERT, (2**70,))),
        database.execute((INSERT, ("a",))),
        return_exceptions=True,
    )

    assert isinstance(answers[0], OverflowError)
    assert await prices(database) == ["a"]


async def test_everything_queued_is_written_before_it_closes(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "tollway.db")
    database.open()
    writing = [asyncio.create_task(database.execute((INSERT, (str(n),)))) for n in range(50)]
    await asyncio.sleep(0)

    await database.close()

    await asyncio.gather(*writing)
    with closing(sqlite3.connect(tmp_path / "tollway.db")) as connection:
        assert connection.execute("SELECT COUNT(*) FROM prices").fetchone() == (50,)


async def test_readers_cannot_write(database: SqliteDatabase) -> None:
    with pytest.raises(Unavailable):
        await database.fetch("DELETE FROM usage")


async def test_the_log_is_written_back_once_it_has_16_mb(database: SqliteDatabase) -> None:
    log = database.path.with_name("tollway.db-wal")
    sizes: list[int] = []
    for number in range(24):  # of 1 MB each, where SQLite would write back after 4
        await database.execute((INSERT_A_MEGABYTE, (str(number),)))
        sizes.append(log.stat().st_size)

    assert 16_000_000 < max(sizes) < 18_000_000


@pytest.mark.parametrize("name", ["a b", "a#b", "a?b", "a%20b", "ä'\"b"])
async def test_a_data_directory_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    database = SqliteDatabase(tmp_path / name / "tollway.db")
    database.open()

    await database.execute((INSERT, ("a",)))

    assert await prices(database) == ["a"]
    await database.close()
    assert os.listdir(tmp_path) == [name]


async def test_the_file_is_its_owners_alone(database: SqliteDatabase) -> None:
    assert database.path.stat().st_mode & 0o777 == 0o600


async def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    first = SqliteDatabase(tmp_path / "tollway.db")
    first.open()
    await first.close()
    with closing(sqlite3.connect(first.path, isolation_level=None)) as connection:
        connection.execute("UPDATE _yoyo_migration SET migration_id = '9999_later'")

    with pytest.raises(StartError, match=r"newer Tollway.*9999_later"):
        SqliteDatabase(first.path).open()


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tollway.db").write_bytes(b"no database " * 1000)

    with pytest.raises(StartError, match="cannot be opened"):
        SqliteDatabase(tmp_path / "tollway.db").open()


async def test_the_schema_is_what_the_migrations_make(database: SqliteDatabase) -> None:
    rows = await database.fetch(
        "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE '%yoyo%'"
    )

    assert {(kind, name): sql for kind, name, sql in rows} == sqlite_schema()


BEFORE = "kind IN ('grant', 'top_up', 'charge', 'refund', 'adjustment')"
NOW = (
    "kind = 'charge' OR kind = 'grant' OR kind = 'top_up' OR kind = 'refund' OR kind = 'adjustment'"
)


def a_file_of_before(path: Path) -> None:
    """With what one request left in two rows, of which there is one now."""
    backend = get_backend(f"sqlite:///{path}")
    with as_file(files("tollway.database") / "migrations" / "sqlite") as folder:
        backend.apply_migrations(read_migrations(str(folder))[:3])
    backend.connection.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        changed = connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE instr(sql, ?)",
            (NOW, BEFORE, NOW),
        )
        assert changed.rowcount == 1
        connection.execute(
            "INSERT INTO holds VALUES"
            " ('req_1', 'acc_1', 'tok_1', 'price_1', 50, 30, 5, 2, 'settled', 1000, 2000)"
        )
        connection.execute(
            "INSERT INTO usage VALUES ('req_1', 'acc_1', 'tok_1', 'm1', 'completed', 'upstream',"
            " 10, 20, 70, 'gpu-1', 'theirs', '[]', 'mine', 1000, 300, 900, 4, 5)"
        )
        # And with what waited to be filed when it was killed.
        hold = ["req_2", "acc_1", "tok_1", "price_1", 50, 30, 0, 2, "settled", 1000, 2000]
        usage = ["req_2", "acc_1", "tok_1", "m1", "completed", "upstream", 10, 20, 70, "gpu-1"]
        usage += ["theirs", "[]", "mine", 1000, 300, 900, 4, 5]
        waited = json.dumps([[hold, usage, True, False, None]]).encode()
        connection.execute("INSERT INTO unfiled (charges) VALUES (?)", (waited,))


async def test_a_file_of_before_becomes_as_a_new_one_is(tmp_path: Path) -> None:
    a_file_of_before(tmp_path / "tollway.db")

    database = SqliteDatabase(tmp_path / "tollway.db")
    database.open()
    await database.close()

    with closing(sqlite3.connect(database.path)) as connection:
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        schema = {(kind, name): sql for kind, name, sql in rows if "yoyo" not in name}
        assert schema == sqlite_schema()
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT * FROM usage").fetchall() == [
            ("req_1", "acc_1", "tok_1", "price_1", "m1", "completed", "upstream", "settled", 50, 35,
             2, 70, 10, 20, 4, 5, "gpu-1", "theirs", "[]", "mine", 1000, 2000, 300, 900)
        ]  # fmt: skip
        assert connection.execute("SELECT * FROM holds").fetchall() == [
            ("req_1", "acc_1", "tok_1", "price_1", 50, 35, 0, 2, "settled", 1000, 2000)
        ]
        (waited,) = read_unfiled(connection)
        assert (waited.capped, waited.checkpointed, waited.claim) == (True, False, None)
        assert astuple(waited.usage) == (
            "req_2", "acc_1", "tok_1", "price_1", "m1", "completed", "upstream", "settled", 50, 30,
            2, 70, 10, 20, 4, 5, "gpu-1", "theirs", "[]", "mine", 1000, 2000, 300, 900,
        )  # fmt: skip
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            connection.execute(
                "INSERT INTO ledger VALUES ('acc_1', 1, 'gift', 5, 5, 'ref', '', 0, x'')"
            )


@pytest.mark.parametrize("table", ["holds", "usage"])
async def test_a_file_of_before_that_is_not_whole_stays_as_it_was(
    tmp_path: Path, table: str
) -> None:
    path = tmp_path / "tollway.db"
    a_file_of_before(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"DELETE FROM {table}")  # noqa: S608
        before = connection.execute("SELECT name, sql FROM sqlite_master").fetchall()

    with pytest.raises(StartError, match="a hold has no usage, or a usage no hold"):
        SqliteDatabase(path).open()

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name, sql FROM sqlite_master").fetchall() == before
        applied = connection.execute("SELECT COUNT(*) FROM _yoyo_migration").fetchone()
        assert applied == (3,)


def test_where_no_schema_may_be_written_the_ledger_is_built_anew(tmp_path: Path) -> None:
    path = tmp_path / "tollway.db"
    a_file_of_before(path)
    with as_file(files("tollway.database") / "migrations" / "sqlite") as folder:
        migration: Any = list(read_migrations(str(folder)))[5]
        migration.load()
    row = ("acc_1", 1, "grant", 5, 5, "ref", "", 0, b"hash")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        migration.module.rebuild(connection.cursor(), sqlite_schema()["table", "ledger"])
        connection.commit()

        assert connection.execute("SELECT * FROM ledger").fetchall() == [row]
        of_ledger = (
            "SELECT type, name, sql FROM sqlite_master WHERE tbl_name = 'ledger' AND sql != ''"
        )
        rows = connection.execute(of_ledger).fetchall()
        assert len(rows) == 3
        for kind, name, sql in rows:
            assert sqlite_schema()[kind, name] == sql


async def test_a_long_read_is_broken_off_when_it_closes(database: SqliteDatabase) -> None:
    begun = threading.Event()

    def read(connection: sqlite3.Connection) -> None:
        connection.create_function("begun", 0, lambda: begun.set() or 1)
        connection.execute(A_LONG_READ).fetchall()

    reading = asyncio.create_task(database.read(read))
    await asyncio.to_thread(begun.wait)

    await database.close()

    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        await reading
