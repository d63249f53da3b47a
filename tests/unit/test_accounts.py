import asyncio
from typing import Any

import pytest
from tests.support.clock import FixedClock

from tollway.accounts import Accounts
from tollway.database.sqlite import SqliteDatabase
from tollway.errors import Unavailable


@pytest.fixture
async def accounts(database: SqliteDatabase) -> Accounts:
    accounts = Accounts(database, FixedClock())
    await accounts.create("acme", chain_head=lambda _: b"\0" * 32)
    return accounts


async def again(database: SqliteDatabase) -> Accounts:
    """As a restart finds them."""
    accounts = Accounts(database, FixedClock())
    await accounts.load()
    return accounts


async def test_a_freeze_while_limits_are_set_stays(
    database: SqliteDatabase, accounts: Accounts
) -> None:
    setting = asyncio.create_task(accounts.set_limits("acme", requests_per_minute=7))
    await asyncio.sleep(0)
    freezing = asyncio.create_task(accounts.freeze("acme"))
    await asyncio.sleep(0)
    assert accounts.named("acme").status == "frozen"  # at once, whatever runs
    await asyncio.gather(setting, freezing)

    known = accounts.named("acme")
    assert (known.status, known.requests_per_minute) == ("frozen", 7)
    assert (await again(database)).named("acme") == known


async def test_changes_at_the_same_time_are_made_one_after_the_other(
    database: SqliteDatabase, accounts: Accounts
) -> None:
    await asyncio.gather(
        accounts.set_limits("acme", requests_per_minute=7),
        accounts.set_limits("acme", concurrent_requests=2),
        accounts.unfreeze("acme"),
        accounts.freeze("acme"),
    )
    known = accounts.named("acme")
    assert (known.status, known.requests_per_minute, known.concurrent_requests) == ("frozen", 7, 2)
    assert (await again(database)).named("acme") == known


async def test_limits_that_are_set_at_two_replicas_do_not_lose_each_other(
    database: SqliteDatabase, accounts: Accounts
) -> None:
    elsewhere = await again(database)  # which has heard of nothing yet
    await accounts.set_limits("acme", requests_per_minute=7)

    await elsewhere.set_limits("acme", concurrent_requests=2)

    known = (await again(database)).named("acme")
    assert (known.requests_per_minute, known.concurrent_requests) == (7, 2)


async def test_a_freeze_that_is_not_on_disk_is_taken_back(
    database: SqliteDatabase, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> None:
        raise Unavailable("The database cannot be written.")

    with monkeypatch.context() as patched:
        patched.setattr(database, "execute", refuse)
        with pytest.raises(Unavailable):
            await accounts.freeze("acme")
    assert accounts.named("acme").status == "active"
    await accounts.freeze("acme")
    assert (await again(database)).named("acme").status == "frozen"


async def test_a_freeze_that_is_given_up_before_its_turn_is_taken_back(accounts: Accounts) -> None:
    setting = asyncio.create_task(accounts.set_limits("acme", requests_per_minute=7))
    await asyncio.sleep(0)
    freezing = asyncio.create_task(accounts.freeze("acme"))
    await asyncio.sleep(0)
    freezing.cancel()
    await asyncio.gather(setting, freezing, return_exceptions=True)
    assert accounts.named("acme").status == "active"


async def test_a_freeze_while_an_account_is_read_again_stays(
    database: SqliteDatabase, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    freezing: list[asyncio.Task[Any]] = []
    fetch = database.fetch

    async def fetch_and_freeze(*query: Any) -> Any:
        rows = await fetch(*query)
        freezing.append(asyncio.create_task(accounts.freeze("acme")))
        await asyncio.sleep(0)
        return rows

    monkeypatch.setattr(database, "fetch", fetch_and_freeze)
    await accounts.read_again([accounts.named("acme").id])
    await freezing[0]
    assert accounts.named("acme").status == "frozen"
