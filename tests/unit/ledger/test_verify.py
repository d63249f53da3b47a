"""Each thing that can be changed in the ledger's file is found, under the name of the rule it
breaks."""

import sqlite3
from collections.abc import AsyncIterator, Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.unit.ledger.books import Books, a_checkpoint, a_history, an_outcome

from tollway.ledger.base import Hold
from tollway.ledger.verify import VIOLATIONS_MAX, verify


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    """Two accounts and one without an entry; a charge with a shortfall, one of 0, a refund, a
    charge to a token with a cap."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    books = await Books(data_dir).open()
    await a_history(books)
    yield books
    await books.close()


@contextmanager
def tampering(books: Books) -> Generator[sqlite3.Connection]:
    """Writes to the file past every refusal, and leaves the schema as it was."""
    with closing(sqlite3.connect(books.path, isolation_level=None)) as connection:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        yield connection
        for _, sql in triggers:
            connection.execute(sql)


def found(books: Books, *open_holds: Hold) -> dict[str, str]:
    with closing(sqlite3.connect(books.path)) as connection:
        return {v.check: f"{v.row}: {v.message}" for v in verify(connection, open_holds)}


async def test_a_whole_ledger_has_no_violation(books: Books) -> None:
    assert books.verify() == []


async def test_an_empty_ledger_has_no_violation(tmp_path: Path) -> None:
    books = await Books(tmp_path).open()

    assert books.verify() == []

    await books.close()


# Every column of every row of the ledger, each with a value that breaks no constraint.
_OTHER_VALUES = {
    "account_id": "'acc_3'",
    "seq": "seq + 100",
    "kind": "CASE kind WHEN 'adjustment' THEN 'grant' ELSE 'adjustment' END",
    "amount": "amount + 1",
    "balance_after": "balance_after + 1",
    "ref": "ref || 'x'",
    "description": "description || ' '",
    "created_at": "created_at + 1",
    "hash": "x'00'",
}


async def test_the_columns_that_are_tampered_with_are_all_there_are(books: Books) -> None:
    rows = await books.database.fetch("SELECT name FROM pragma_table_info('ledger')")

    assert {name for (name,) in rows} == _OTHER_VALUES.keys()


@pytest.mark.parametrize("column", _OTHER_VALUES)
@pytest.mark.parametrize(("account", "seq"), [("acc_1", n) for n in range(1, 6)] + [("acc_2", 2)])
async def test_a_changed_column_of_an_entry_is_found(
    books: Books, column: str, account: str, seq: int
) -> None:
    with tampering(books) as connection:
        change = f"{column} = {_OTHER_VALUES[column]}"
        connection.execute(
            f"UPDATE ledger SET {change} WHERE account_id = ? AND seq = ?",  # noqa: S608 (ours)
            (account, seq),
        )

    assert "hash chain" in found(books)


@pytest.mark.parametrize(("account", "seq"), [("acc_1", n) for n in range(1, 6)] + [("acc_2", 2)])
async def test_a_missing_entry_is_found(books: Books, account: str, seq: int) -> None:
    with tampering(books) as connection:
        connection.execute("DELETE FROM ledger WHERE account_id = ? AND seq = ?", (account, seq))

    assert {"balance equals entries", "sequence without gaps", "hash chain"} <= found(books).keys()


@pytest.mark.parametrize("seq", [0, 6])
@pytest.mark.parametrize("account", ["acc_1", "acc_3", "nobody"])
async def test_an_added_entry_is_found(books: Books, account: str, seq: int) -> None:
    with tampering(books) as connection:
        connection.execute(
            "INSERT INTO ledger VALUES (?, ?, 'grant', 0, 1000, 'gift', '', 0, x'00')",
            (account, seq),
        )

    assert "hash chain" in found(books)


async def test_text_that_is_not_utf_8_is_found(books: Books) -> None:
    with tampering(books) as connection:
        connection.execute(
            "UPDATE ledger SET description = CAST(x'ff' AS TEXT) WHERE ref = 'second'"
        )

    assert found(books)["hash chain"] == ("ledger acc_1 5: does not follow from the one before it")


@pytest.mark.parametrize("value", ["CAST(x'61ff' AS TEXT)", "x'61'"], ids=["not UTF-8", "a BLOB"])
async def test_an_account_that_is_no_text_hides_nothing_else(books: Books, value: str) -> None:
    changed = "UPDATE ledger SET account_id = {} WHERE account_id = 'acc_1' AND seq = 1"
    with tampering(books) as connection:
        connection.execute(changed.format(value))

    violations = found(books)
    assert "could not be checked" in violations["hash chain"]
    assert {"balance equals entries", "sequence without gaps"} <= violations.keys()


async def test_two_entries_that_changed_places_are_found(books: Books) -> None:
    with tampering(books) as connection:
        for sql in ("seq = -seq", "seq = CASE seq WHEN -2 THEN 3 WHEN -3 THEN 2 ELSE -seq END"):
            connection.execute(f"UPDATE ledger SET {sql} WHERE account_id = 'acc_1'")  # noqa: S608

    assert {"hash chain", "running sum"} <= found(books).keys()


async def test_only_the_first_violations_of_a_check_are_named(books: Books) -> None:
    with tampering(books) as connection:
        connection.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
            " INSERT INTO ledger SELECT 'nobody', i, 'grant', 1, i, i, '', 0, x'00' FROM n"
        )

    violations = books.verify()

    assert sum(v.check == "entry of an account" for v in violations) == VIOLATIONS_MAX


@pytest.mark.parametrize(
    ("sql", "check"),
    [
        ("UPDATE accounts SET balance = -1 WHERE id = 'acc_3'", "balance not below zero or held"),
        ("UPDATE accounts SET held = -1 WHERE id = 'acc_1'", "balance not below zero or held"),
        ("UPDATE accounts SET held = 2000 WHERE id = 'acc_1'", "balance not below zero or held"),
        ("UPDATE accounts SET held = 10 WHERE id = 'acc_1'", "held equals open holds"),
        ("UPDATE accounts SET balance = balance + 1 WHERE id = 'acc_1'", "balance equals entries"),
        ("UPDATE accounts SET balance = 1 WHERE id = 'acc_3'", "balance equals entries"),
        ("UPDATE accounts SET seq = seq + 1 WHERE id = 'acc_1'", "sequence without gaps"),
        ("UPDATE accounts SET seq = 1 WHERE id = 'acc_3'", "sequence without gaps"),
        ("UPDATE accounts SET chain_head = x'00' WHERE id = 'acc_1'", "hash chain"),
        ("UPDATE accounts SET chain_head = x'00' WHERE id = 'acc_3'", "hash chain"),
        ("DELETE FROM accounts WHERE id = 'acc_1'", "entry of an account"),
        ("DELETE FROM accounts WHERE id = 'acc_2'", "foreign keys"),
        ("UPDATE ledger SET balance_after = 0 WHERE ref = 'second'", "running sum"),
        ("UPDATE ledger SET amount = amount - 1 WHERE ref = 'req_0001'", "running sum"),
        ("UPDATE ledger SET balance_after = -5 WHERE ref = 'second'", "integrity"),
        ("UPDATE usage SET charged = charged + 1 WHERE request_id = 'req_0001'",
         "hold has its charge"),
        ("UPDATE usage SET charged = 0 WHERE request_id = 'req_0001'", "hold has its charge"),
        ("UPDATE usage SET account_id = 'acc_2' WHERE request_id = 'req_0001'",
         "hold has its charge"),
        ("UPDATE usage SET closed_at = closed_at + 1 WHERE charged > 0", "hold has its charge"),
        ("UPDATE usage SET charged = 7, amount = 7 WHERE request_id = 'req_0003'",
         "hold has its charge"),
        ("DELETE FROM ledger WHERE ref = 'req_0002'", "hold has its charge"),
        ("DELETE FROM usage WHERE request_id = 'req_0001'", "charge has its hold"),
        ("UPDATE usage SET request_id = 'req_x' WHERE request_id = 'req_0001'",
         "charge has its hold"),
        ("UPDATE usage SET amount = 40 WHERE request_id = 'req_0001'", "charge within its hold"),
        ("UPDATE usage SET state = 'released' WHERE request_id = 'req_0001'", "state of a hold"),
        ("UPDATE usage SET state = 'settled' WHERE request_id = 'req_0003'", "state of a hold"),
        ("UPDATE usage SET state = 'open' WHERE request_id = 'req_0003'", "state of a hold"),
        ("UPDATE usage SET completion_tokens = 99 WHERE request_id = 'req_0001'",
         "usage at its price"),
        ("UPDATE usage SET completion_tokens = 99 WHERE request_id = 'req_0003'",
         "usage at its price"),
        ("UPDATE usage SET prompt_tokens = 0 WHERE request_id = 'req_0001'", "usage at its price"),
        ("UPDATE usage SET model = 'm2' WHERE request_id = 'req_0003'", "usage at its price"),
        ("UPDATE usage SET shortfall = 0 WHERE request_id = 'req_0002'", "usage at its price"),
        ("UPDATE usage SET shortfall = 9 WHERE request_id = 'req_0003'", "usage at its price"),
        ("UPDATE usage SET price_id = 'price_9' WHERE request_id = 'req_0003'",
         "usage at its price"),
        ("UPDATE prices SET prompt_rate = 7000000", "usage at its price"),
        ("UPDATE prices SET completion_rate = 1500000", "usage at its price"),
        ("UPDATE prices SET cached_prompt_rate = 7000000; UPDATE usage SET cached_tokens = 1 "
         "WHERE request_id = 'req_0001'", "usage at its price"),
        ("UPDATE prices SET reasoning_rate = 7; UPDATE usage SET reasoning_tokens = 9 "
         "WHERE request_id = 'req_0001'", "usage at its price"),
        ("UPDATE usage SET cached_tokens = 2 WHERE request_id = 'req_0001'", "parts of a usage"),
        ("UPDATE usage SET reasoning_tokens = -1 WHERE request_id = 'req_0001'",
         "parts of a usage"),
        ("UPDATE prices SET model = 'm2'", "usage at its price"),
        ("DELETE FROM prices", "usage at its price"),
        ("UPDATE usage SET prompt_tokens = 41, completion_tokens = 0 WHERE request_id = 'req_0001'",
         "charge says its usage"),
        ("UPDATE ledger SET amount = 42 WHERE kind = 'refund'", "refund within its charge"),
        ("UPDATE ledger SET amount = -1 WHERE kind = 'refund'", "refund within its charge"),
        ("UPDATE ledger SET ref = 'req_0003' WHERE kind = 'refund'", "refund within its charge"),
        ("UPDATE ledger SET ref = 'req_0004' WHERE kind = 'refund'", "refund within its charge"),
        ("UPDATE tokens SET spent = spent - 1", "spent of a token"),
        ("UPDATE usage SET token_id = 'tok_1' WHERE request_id = 'req_0001'", "spent of a token"),
        ("UPDATE tokens SET account_id = 'acc_9'", "foreign keys"),
        ("DROP INDEX tokens_by_account", "schema"),
        ("CREATE TRIGGER skim AFTER INSERT ON usage BEGIN DELETE FROM usage; END", "schema"),
        ("ALTER TABLE ledger ADD COLUMN note TEXT", "schema"),
        ("ALTER TABLE usage RENAME COLUMN remaining TO rest", "schema"),
        ("DROP TABLE idempotency", "schema"),
    ],
)  # fmt: skip
async def test_what_does_not_agree_is_found(books: Books, sql: str, check: str) -> None:
    with tampering(books) as connection:
        connection.executescript(sql)

    assert check in found(books)


@pytest.mark.parametrize("table", ["ledger", "audit", "prices"])
async def test_a_refusal_that_was_taken_out_is_found(books: Books, table: str) -> None:
    with closing(sqlite3.connect(books.path)) as connection:
        verb = "refuse" if table == "prices" else "refuses"
        connection.execute(f"DROP TRIGGER {table}_{verb}_update")

    assert found(books) == {"schema": f"trigger {table}_{verb}_update: is missing"}


async def test_a_damaged_page_does_not_hide_what_other_checks_find(books: Books) -> None:
    with tampering(books) as connection:
        connection.execute("UPDATE accounts SET balance = balance + 1 WHERE id = 'acc_2'")
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'usage'"
        ).fetchone()
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    await books.close()
    with books.path.open("r+b") as file:
        file.seek((root - 1) * page_size)
        file.write(b"\xff" * page_size)

    checks = found(books)

    assert {"integrity", "hold has its charge", "balance equals entries"} <= checks.keys()
    assert "could not be checked" in checks["hold has its charge"]


async def test_a_missing_row_of_an_index_is_found(books: Books) -> None:
    with tampering(books) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_master WHERE name = 'tokens_by_account'")
    await books.token("acc_2", None, "tok_2")

    assert "schema" in found(books)


async def test_open_holds_beyond_the_balance_are_found(books: Books) -> None:
    hold = await books.hold("acc_2", 480)
    with tampering(books) as connection:
        connection.execute("UPDATE accounts SET balance = 479 WHERE id = 'acc_2'")

    assert found(books, hold)["open holds"] == "account acc_2: balance 479, open holds 480"


async def test_open_holds_within_the_balance_are_none(books: Books) -> None:
    holds = [await books.hold("acc_2", 240), await books.hold("acc_2", 240)]

    assert found(books, *holds) == {}


async def test_a_hold_that_was_settled_since_it_was_asked_for_is_no_open_one(
    books: Books,
) -> None:
    hold = await books.hold("acc_2", 480)
    asked_before = books.ledger.open_holds()
    await books.ledger.settle(hold, an_outcome(hold.amount))

    assert found(books, *asked_before) == {}


async def test_an_open_hold_of_no_account_is_found(books: Books) -> None:
    stranger = Hold("req_9", "nobody", "tok_0", "price_1", 1, 0, 0.0)

    assert "open holds" in found(books, stranger)


async def test_a_checkpoint_of_a_hold_that_has_ended_is_found(books: Books) -> None:
    hold = await books.hold("acc_1", 10)
    await books.ledger.checkpoint([a_checkpoint(hold, 4, books.clock.now())])
    assert books.verify() == []
    with tampering(books) as connection:
        connection.execute("UPDATE checkpoints SET hold_id = 'req_0001'")

    assert found(books) == {"checkpoint of an open hold": "checkpoint req_0001: its hold has ended"}


async def test_everything_is_seen_in_one_snapshot(books: Books) -> None:
    with closing(sqlite3.connect(books.path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM accounts").fetchall()
        with tampering(books) as other:
            other.execute("UPDATE accounts SET balance = 0 WHERE id = 'acc_1'")

        assert verify(connection) == []
        assert connection.in_transaction
