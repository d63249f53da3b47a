"""Each thing that can be changed in the ledger in Postgres is found, under the name of the rule it
breaks: by somebody who owns the database, past every refusal."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.postgres_books import EAGER_LEASES, PostgresBooks
from tests.support.postgres import PostgresServer
from tests.unit.ledger.books import a_checkpoint, a_history, an_outcome

from tollway.ledger.verify import VIOLATIONS_MAX


@pytest.fixture
async def books(database_url: str, tmp_path: Path) -> AsyncIterator[PostgresBooks]:
    """Two accounts and one without an entry; a charge with a shortfall, one of 0, a refund, a
    charge to a token with a cap, one that was paid late, and a hold that is open."""
    books = await PostgresBooks(database_url, tmp_path / "data").open()
    token = await a_history(books)
    await books.hold("acc_1", 25)  # req_0005
    await books.hold("acc_2", 5, token_id=token, spend_cap=300)  # req_0006
    yield books
    await books.close()


def tamper(postgres: PostgresServer, books: PostgresBooks, sql: str) -> None:
    with postgres.connect(books.url.rpartition("/")[2]) as connection:
        # No trigger and no foreign key fires in a replica of a database; checks do, and go.
        connection.execute("SET session_replication_role = replica")
        if sql.startswith("UPDATE"):
            checks = "SELECT conrelid::regclass, conname FROM pg_constraint WHERE contype = 'c'"
            for table, name in connection.execute(
                checks + " AND connamespace = 'public'::regnamespace"
            ).fetchall():
                connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}".encode())
        connection.execute(sql.encode())


async def found(books: PostgresBooks) -> dict[str, str]:
    return {v.check: f"{v.row}: {v.message}" for v in await books.violations()}


async def test_a_whole_ledger_has_no_violation(books: PostgresBooks) -> None:
    assert await books.violations() == []


@pytest.mark.parametrize(
    ("sql", "check"),
    [
        ("UPDATE accounts SET balance = -1 WHERE id = 'acc_3'", "balance not below zero or held"),
        ("UPDATE accounts SET held = 2000 WHERE id = 'acc_1'", "balance not below zero or held"),
        ("UPDATE accounts SET held = held + 1 WHERE id = 'acc_1'", "held equals open holds"),
        ("UPDATE holds SET amount = 26 WHERE id = 'req_0005'", "held equals open holds"),
        ("INSERT INTO credit_leases VALUES ('ins_x', 'acc_1', 7, false)", "held equals open holds"),
        ("INSERT INTO credit_leases VALUES ('ins_x', 'acc_1', 7, false)",
         "open hold of a live replica"),
        ("UPDATE instances SET reaped = true", "open hold of a live replica"),
        ("UPDATE holds SET expires_at = 1 WHERE id = 'req_0005'", "open hold of a live replica"),
        ("UPDATE accounts SET balance = balance + 1 WHERE id = 'acc_1'", "balance equals entries"),
        ("UPDATE accounts SET seq = seq + 1 WHERE id = 'acc_1'", "sequence without gaps"),
        ("UPDATE accounts SET chain_head = '\\x00' WHERE id = 'acc_1'", "hash chain"),
        ("UPDATE accounts SET chain_head = '\\x00' WHERE id = 'acc_3'", "hash chain"),
        ("UPDATE ledger SET hash = '\\x00' WHERE ref = 'second'", "hash chain"),
        ("UPDATE ledger SET description = 'x' WHERE ref = 'second'", "hash chain"),
        ("UPDATE ledger SET created_at = created_at + 1 WHERE ref = 'second'", "hash chain"),
        ("DELETE FROM ledger WHERE ref = 'second'", "hash chain"),
        ("DELETE FROM accounts WHERE id = 'acc_1'", "entry of an account"),
        ("DELETE FROM accounts WHERE id = 'acc_2'", "foreign keys"),
        ("UPDATE ledger SET balance_after = 0 WHERE ref = 'second'", "running sum"),
        ("UPDATE holds SET charged = charged + 1 WHERE id = 'req_0001'", "hold has its charge"),
        ("UPDATE holds SET account_id = 'acc_2' WHERE id = 'req_0001'", "hold has its charge"),
        ("UPDATE holds SET closed_at = closed_at + 1 WHERE charged > 0", "hold has its charge"),
        ("DELETE FROM ledger WHERE ref = 'req_0002'", "hold has its charge"),
        ("DELETE FROM holds WHERE id = 'req_0001'", "charge has its hold"),
        ("UPDATE holds SET amount = 40 WHERE id = 'req_0001'", "charge within its hold"),
        ("UPDATE holds SET late = 60 WHERE id = 'req_0001'", "charge within its hold"),
        ("UPDATE holds SET state = 'released' WHERE id = 'req_0001'", "state of a hold"),
        ("UPDATE holds SET state = 'open' WHERE id = 'req_0003'", "state of a hold"),
        ("UPDATE holds SET token_id = 'tok_9' WHERE id = 'req_0001'", "hold has its usage"),
        ("DELETE FROM usage WHERE request_id = 'req_0003'", "hold has its usage"),
        ("DELETE FROM holds WHERE id = 'req_0003'", "usage has its hold"),
        ("UPDATE usage SET completion_tokens = 99 WHERE request_id = 'req_0001'",
         "usage at its price"),
        ("UPDATE usage SET cached_tokens = 5 WHERE request_id = 'req_0003'", "parts of a usage"),
        ("UPDATE holds SET shortfall = 0 WHERE id = 'req_0002'", "usage at its price"),
        ("UPDATE prices SET prompt_rate = 7000000", "usage at its price"),
        ("DELETE FROM prices", "usage at its price"),
        ("UPDATE usage SET prompt_tokens = 41, completion_tokens = 0 WHERE request_id = 'req_0001'",
         "charge says its usage"),
        ("UPDATE ledger SET amount = 42 WHERE kind = 'refund'", "refund within its charge"),
        ("UPDATE tokens SET spent = spent - 1 WHERE id = 'tok_1'", "spent of a token"),
        ("UPDATE tokens SET held = held + 1 WHERE id = 'tok_1'", "spent of a token"),
        ("ALTER TABLE ledger DISABLE TRIGGER ledger_refuses_change", "schema"),
        ("DROP TRIGGER audit_refuses_truncate ON audit", "schema"),
        ("ALTER TABLE accounts DROP CONSTRAINT accounts_check", "schema"),
        ("ALTER TABLE ledger DROP CONSTRAINT ledger_ref_kind_key", "schema"),
    ],
)  # fmt: skip
async def test_what_does_not_agree_is_found(
    books: PostgresBooks, postgres: PostgresServer, sql: str, check: str
) -> None:
    tamper(postgres, books, sql)

    assert check in await found(books)


async def test_a_late_charge_that_is_changed_is_found(
    books: PostgresBooks, postgres: PostgresServer
) -> None:
    hold = await books.hold("acc_2", 50)
    await books.ledger.checkpoint([a_checkpoint(hold, 13, books.clock.now())])
    await books.database.fetch("SELECT * FROM expire_holds(?)", (books.instance.id,))
    await books.ledger.settle(hold, an_outcome(30))
    assert await books.violations() == []

    tamper(postgres, books, "UPDATE holds SET late = late - 1 WHERE late > 0")

    assert "hold has its charge" in await found(books)


async def test_only_the_first_violations_of_a_check_are_named(
    books: PostgresBooks, postgres: PostgresServer
) -> None:
    tamper(
        postgres,
        books,
        "INSERT INTO ledger SELECT 'nobody', i, 'grant', 1, i, i, '', 0, '\\x00'"
        " FROM generate_series(1, 500) i",
    )

    violations = await books.violations()

    assert sum(v.check == "entry of an account" for v in violations) == VIOLATIONS_MAX


async def test_a_leased_account_that_replicas_spend_from_is_whole_at_every_moment(
    database_url: str, tmp_path: Path
) -> None:
    books = await PostgresBooks(database_url, tmp_path / "data", policy=EAGER_LEASES).open()
    account = await books.account(10_000)
    for _ in range(5):
        await books.charge(account, 100, cost=7)
        await books.hold(account, 10)
        assert await books.violations() == []
    await books.close()
