"""The Postgres ledger while the server itself is down, and with another database in its place."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.integration.postgres_books import (
    EAGER_LEASES,
    NO_LEASES,
    PostgresBooks,
    until,
    until_nothing,
)
from tests.support.postgres import PostgresServer
from tests.unit.ledger.books import an_outcome

from tollway.errors import Unavailable
from tollway.ledger.base import Recovered, Settlement
from tollway.ledger.postgres.leases import LeasePolicy


@pytest.fixture
def policy() -> LeasePolicy:
    return NO_LEASES


@pytest.fixture(scope="module")
def durable() -> Iterator[PostgresServer]:
    """One that is stopped, and keeps what was committed."""
    with PostgresServer(durable=True) as server:
        yield server


@pytest.fixture
async def stopping(
    durable: PostgresServer, tmp_path: Path, policy: LeasePolicy
) -> AsyncIterator[PostgresBooks]:
    name = durable.new_database()
    books = await PostgresBooks(durable.url(name), tmp_path / "data", policy=policy).open()
    yield books
    violations = await books.violations()
    await books.close()
    assert violations == []


@pytest.mark.parametrize("policy", [NO_LEASES, EAGER_LEASES], ids=["exact", "leased"])
async def test_charges_survive_a_database_that_is_down_and_are_applied_once(
    stopping: PostgresBooks, durable: PostgresServer
) -> None:
    account = await stopping.account(100)
    holds = [await stopping.hold(account, 10) for _ in range(3)]
    durable.stop(signal.SIGQUIT)

    answers = await asyncio.gather(*(stopping.ledger.settle(h, an_outcome(7)) for h in holds))

    assert answers == [Settlement(7, 0, answer.available) for answer in answers]
    assert len((stopping.data_dir / "journal").read_bytes().splitlines()) >= 3
    with pytest.raises(Unavailable) as refusal:
        await stopping.hold(account, 1)
    assert refusal.value.retry_after_seconds is not None
    durable.start()
    await until(lambda: stopping.ledger.fault is None)
    assert (stopping.data_dir / "journal").read_bytes() == b""
    assert await stopping.balance(account) == 79
    assert (await stopping.charge(account, 10, cost=1)).available == 78


@pytest.mark.parametrize("policy", [EAGER_LEASES])
async def test_credit_that_is_given_back_while_the_database_is_down_goes_back_when_it_can(
    stopping: PostgresBooks, durable: PostgresServer
) -> None:
    wanted, idle = await stopping.account(1000), await stopping.account(1000, "acc_2")
    for account in (wanted, idle):
        await stopping.charge(account, 10, cost=10)
        await stopping.ledger.refresh(account)  # comes after the lease that it asked for
    leased = await stopping.database.fetch("SELECT count(*) FROM credit_leases WHERE amount > 0")
    assert leased == [(2,)]
    durable.stop(signal.SIGQUIT)

    await until(lambda: stopping.ledger.leased() == 0)
    await until(lambda: stopping.ledger.fault is not None)
    durable.start()
    await until(lambda: stopping.ledger.fault is None)

    hold = await stopping.hold(wanted, 990)
    assert (hold.amount, hold.available) == (990, 0)
    await stopping.ledger.settle(hold, an_outcome(0))
    await until_nothing(stopping, "credit_leases WHERE amount > 0")
    await stopping.ledger.refresh(idle)
    assert stopping.ledger.held(idle) == 0


async def test_a_crash_while_the_database_is_down_loses_no_charge(
    stopping: PostgresBooks, durable: PostgresServer
) -> None:
    account, request_id = await _killed_with_a_charge_in_its_journal(stopping, durable)

    await stopping.open()

    assert stopping.recovered == [Recovered(request_id, account, "journal", 1, 3, 7, 0)]
    assert await stopping.balance(account) == 93
    await stopping.crash()
    assert stopping.recovered == []


async def _killed_with_a_charge_in_its_journal(
    books: PostgresBooks, server: PostgresServer
) -> tuple[str, str]:
    """The account and the request, of 7 credits. The database is back."""
    account = await books.account(100)
    hold = await books.hold(account, 10)
    server.stop(signal.SIGQUIT)
    await books.ledger.settle(hold, an_outcome(7))
    await books.die()
    server.start()
    return account, hold.request_id


async def test_a_charge_of_an_account_that_a_restored_database_lacks_is_told_whole_to_the_operator(
    stopping: PostgresBooks, durable: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    account, _ = await _killed_with_a_charge_in_its_journal(stopping, durable)
    stopping.url = durable.url(durable.new_database())

    await stopping.open()

    assert stopping.recovered == []
    (lost,) = [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]
    assert f'"account":"{account}"' in lost
    assert '"cost":7' in lost


async def test_a_request_whose_account_is_gone_from_the_database_fails(
    stopping: PostgresBooks, durable: PostgresServer
) -> None:
    hold = await stopping.hold(await stopping.account(100), 10)
    with durable.connect(stopping.url.rpartition("/")[2]) as connection:
        connection.execute("SET session_replication_role = replica")
        for table in ("accounts", "tokens", "ledger", "holds"):
            connection.execute(f"DELETE FROM {table}".encode())  # noqa: S608

    with pytest.raises(Unavailable):
        async with asyncio.timeout(5):
            await stopping.ledger.settle(hold, an_outcome(7))


async def test_who_adds_while_the_database_is_down_is_told_to_look_before_adding_again(
    stopping: PostgresBooks, durable: PostgresServer
) -> None:
    account = await stopping.account(100)
    durable.stop(signal.SIGQUIT)

    with pytest.raises(Unavailable, match="may have been added"):
        await stopping.top_up(account, 30, ref="a")

    durable.start()
    await stopping.top_up(account, 30, ref="a")
    await until(lambda: stopping.ledger.fault is None)
    assert await stopping.balance(account) == 130


async def test_an_account_made_while_the_database_is_down_is_refused(
    stopping: PostgresBooks, durable: PostgresServer
) -> None:
    durable.stop(signal.SIGQUIT)

    with pytest.raises(Unavailable):
        await stopping.account(0, "acc_2")

    durable.start()
    await stopping.account(5, "acc_2")
    await until(lambda: stopping.ledger.fault is None)
