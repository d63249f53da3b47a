"""The Postgres ledger when something breaks: a connection, a replica, the server for a moment; and
several replicas that compete."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest
from tests.integration.postgres_books import (
    EAGER_LEASES,
    NO_LEASES,
    PostgresBooks,
    until,
    until_nothing,
)
from tests.support.fault_proxy import CUT, DELAY, FaultProxy
from tests.support.postgres import PostgresServer
from tests.unit.ledger.books import a_checkpoint, an_outcome

from tollway.database.instance import SWEEP_SECONDS, Change
from tollway.errors import IdempotencyConflict, Refused, Unavailable
from tollway.ledger.base import Earlier, NotEnough, Settlement
from tollway.ledger.postgres.leases import LeasePolicy

BODY = b"\x01" * 32
_A_DAY_AHEAD = b"""
CREATE OR REPLACE FUNCTION now_ms() RETURNS BIGINT LANGUAGE sql VOLATILE AS
'SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint + 86400000'"""
_POLICIES = pytest.mark.parametrize("policy", [NO_LEASES, EAGER_LEASES], ids=["exact", "leased"])


@pytest.fixture
def policy() -> LeasePolicy:
    return NO_LEASES


@pytest.fixture
async def replicas(
    database_url: str, tmp_path: Path, policy: LeasePolicy
) -> AsyncIterator[list[PostgresBooks]]:
    """Two, of whose requests no two have the same id. Leases last a second, and the ledger is whole
    after every test."""
    books = [
        PostgresBooks(
            database_url,
            tmp_path / str(number),
            policy=policy,
            first_request=1000 * number,
            lease_seconds=1.0,
        )
        for number in (1, 2)
    ]
    for one in books:
        await one.open()
    yield books
    violations = await books[1].violations()
    for one in books:
        await one.close()
    assert violations == []


# --- replicas that compete ------------------------------------------------------------------------


@_POLICIES
async def test_of_400_requests_at_two_replicas_exactly_those_that_can_be_paid_are_admitted(
    replicas: list[PostgresBooks],
) -> None:
    account = await replicas[0].account(370)

    answers = await asyncio.gather(
        *(books.charge(account, 10, cost=10) for books in replicas for _ in range(200)),
        return_exceptions=True,
    )

    admitted = [answer for answer in answers if isinstance(answer, Settlement)]
    refused = [answer for answer in answers if isinstance(answer, NotEnough)]
    assert (len(admitted), len(refused)) == (37, 363)
    assert await replicas[0].balance(account) == 0


async def test_a_spend_cap_is_exact_over_replicas(replicas: list[PostgresBooks]) -> None:
    account = await replicas[0].account(10_000)
    capped = {"token_id": await replicas[0].token(account, 100, "tok_1"), "spend_cap": 100}

    answers = await asyncio.gather(
        *(books.charge(account, 7, cost=7, **capped) for books in replicas for _ in range(40)),
        return_exceptions=True,
    )

    assert sum(isinstance(answer, Settlement) for answer in answers) == 14
    assert await replicas[0].balance(account) == 10_000 - 98


async def test_a_key_is_running_wherever_it_runs(replicas: list[PostgresBooks]) -> None:
    account = await replicas[0].account(100)
    ask = replicas[0].ask(account, 20)
    await replicas[0].ledger.keys.claim(account, "key", BODY, ask.request_id)

    with pytest.raises(IdempotencyConflict, match="still running"):
        await replicas[1].ledger.keys.claim(account, "key", BODY, "req_9")

    hold = await replicas[0].ledger.hold(ask)
    await replicas[0].ledger.settle(hold, an_outcome(5))
    earlier = await replicas[1].ledger.keys.claim(account, "key", BODY, "req_9")
    assert earlier == Earlier(ask.request_id, None)


async def test_a_key_that_could_not_be_freed_is_tried_again(
    replicas: list[PostgresBooks], postgres: PostgresServer, database_url: str
) -> None:
    one, two = replicas
    account = await one.account(100)
    await one.ledger.keys.claim(account, "key", BODY, "req_1")
    name = database_url.rpartition("/")[2]
    with postgres.connect(name) as connection, connection.transaction():
        connection.execute("SELECT 1 FROM idempotency FOR UPDATE")
        one.ledger.keys.free("req_1")  # waits for the row, and its connection breaks
        blocked = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = 'tollway_server' AND wait_event_type = 'Lock'"
        )
        async with asyncio.timeout(10):
            while not connection.execute(blocked.encode()).fetchall():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async with asyncio.timeout(10):
        while not await _claims(two, account):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    assert one.ledger.fault is None


async def _claims(books: PostgresBooks, account: str) -> bool:
    with contextlib.suppress(IdempotencyConflict):
        return await books.ledger.keys.claim(account, "key", BODY, "req_2") is None
    return False


@pytest.mark.parametrize("policy", [EAGER_LEASES])
async def test_what_another_replica_has_leased_is_no_reason_to_refuse(
    replicas: list[PostgresBooks],
) -> None:
    one, two = replicas
    account = await one.account(1000)
    hold = await one.hold(account, 100)
    await until(lambda: one.ledger.available(account) == 900)
    await one.charge(account, 100, cost=0)
    leased = await one.database.fetch("SELECT sum(amount)::bigint FROM credit_leases")
    assert one.ledger.leased() == leased[0][0]

    other = await two.hold(account, 900)

    assert leased[0][0] > 0
    assert (other.amount, other.available) == (900, 0)
    with pytest.raises(NotEnough):
        await two.hold(account, 1)
    await one.ledger.settle(hold, an_outcome(60))
    await two.ledger.settle(other, an_outcome(900))
    assert await one.balance(account) == 40


@pytest.mark.parametrize("policy", [LeasePolicy(busy_holds=5)])
async def test_a_lease_is_at_most_a_part_of_what_is_available(
    replicas: list[PostgresBooks],
) -> None:
    """Half of it for one replica, a quarter for two: the rest may be needed elsewhere."""
    one = replicas[0]
    account = await one.account(1000)

    holds = await asyncio.gather(*(one.hold(account, 100) for _ in range(5)))
    await until(lambda: one.ledger.leased() > 0)

    # At that pace it wants 500; 600 and less were available when the last of them was held.
    assert 100 <= one.ledger.leased() <= 300
    for hold in holds:
        await one.ledger.settle(hold, an_outcome(0))


@pytest.mark.parametrize("policy", [EAGER_LEASES])
async def test_what_is_leased_can_be_taken_away_by_the_operator(
    replicas: list[PostgresBooks],
) -> None:
    one, two = replicas
    account = await one.account(1000)
    for _ in range(5):
        await one.charge(account, 100, cost=0)

    entry, _ = await two.ledger.add(
        account, -1000, kind="adjustment", ref="a", description="by hand"
    )

    assert entry.balance_after == 0
    with pytest.raises(Refused):
        await two.ledger.add(account, -1, kind="adjustment", ref="b", description="by hand")


@pytest.mark.parametrize("policy", [LeasePolicy(busy_holds=1)])
async def test_a_leased_hold_asks_the_database_nothing_and_idle_credit_goes_back(
    replicas: list[PostgresBooks],
) -> None:
    one = replicas[0]
    account = await one.account(100_000)
    await one.charge(account, 100, cost=1)
    await one.ledger.refresh(account)
    before = one.ledger.round_trips

    holds = [await one.hold(account, 10) for _ in range(10)]

    assert one.ledger.round_trips == before
    for hold in holds:
        await one.ledger.settle(hold, an_outcome(3))

    await until_nothing(one, "credit_leases WHERE amount > 0")
    rows = await one.database.fetch("SELECT balance, held FROM accounts")
    assert rows == [(100_000 - 31, 0)]


@pytest.mark.parametrize("policy", [EAGER_LEASES])
async def test_a_lease_that_is_recalled_while_more_is_asked_for_is_counted_once(
    replicas: list[PostgresBooks],
) -> None:
    one = replicas[0]
    account = await one.account(1000)
    holds = [await one.hold(account, 50)]  # and asks for a lease
    one.instance.on_recalls([account])
    await one.ledger.refresh(account)

    holds += [await one.hold(account, 50) for _ in range(4)]
    settled = [await one.ledger.settle(hold, an_outcome(50)) for hold in holds]

    assert [(one.charged, one.shortfall) for one in settled] == [(50, 0)] * 5
    assert await one.balance(account) == 750


@pytest.mark.parametrize("policy", [EAGER_LEASES])
async def test_a_replica_whose_lease_has_run_out_asks_the_database_for_each_hold(
    replicas: list[PostgresBooks],
) -> None:
    one = replicas[0]
    account = await one.account(100_000)
    await one.charge(account, 100, cost=1)
    await one.ledger.refresh(account)
    await one.instance.abandon()  # it is stopped, or hears nothing
    one.clock.advance(1)
    before = one.ledger.round_trips

    await one.hold(account, 10)

    assert one.ledger.round_trips > before


# --- replicas that die, or seem to ----------------------------------------------------------------


@_POLICIES
async def test_a_replica_that_dies_is_reaped_at_its_checkpoints(
    replicas: list[PostgresBooks],
) -> None:
    one, two = replicas
    account = await one.account(1000)
    streams = [await one.hold(account, 50) for _ in range(3)]
    await one.ledger.checkpoint([a_checkpoint(streams[1], 13, one.clock.now())])
    await one.die()

    for _ in range(3):
        two.clock.advance(0.9)
        await asyncio.sleep(0.1)

    await two.ledger.refresh(account)
    assert (two.ledger.available(account), two.ledger.held(account)) == (987, 0)
    receipt = await two.ledger.receipt(streams[1].request_id)
    assert receipt is not None
    assert (receipt.charged, receipt.source) == (13, "checkpoint")
    await one.open()
    assert one.recovered == []


@_POLICIES
@pytest.mark.parametrize(("checkpointed", "cost", "paid"), [(None, 30, 30), (13, 30, 30),
                                                            (13, 99, 50), (13, 5, 13),
                                                            (None, 0, 0)])  # fmt: skip
async def test_a_replica_that_was_only_stopped_takes_what_it_is_still_owed_once(
    replicas: list[PostgresBooks], checkpointed: int | None, cost: int, paid: int
) -> None:
    one, two = replicas
    account = await one.account(1000)
    await one.hold(account, 1)  # so that the next may be leased
    await one.ledger.refresh(account)
    hold = await one.hold(account, 50)
    if checkpointed is not None:
        await one.ledger.checkpoint([a_checkpoint(hold, checkpointed, one.clock.now())])
    await two.database.fetch("SELECT * FROM expire_holds(?)", (one.instance.id,))

    settlement = await one.ledger.settle(hold, an_outcome(cost))

    assert settlement.charged == paid
    assert await one.balance(account) == 1000 - paid
    assert await one.violations() == []
    receipt = await two.ledger.receipt(hold.request_id)
    assert receipt is not None
    assert receipt.charged == paid


@_POLICIES
async def test_what_is_owed_late_never_takes_what_others_hold(
    replicas: list[PostgresBooks],
) -> None:
    one, two = replicas
    account = await one.account(100)
    hold = await one.hold(account, 80)
    await two.database.fetch("SELECT * FROM expire_holds(?)", (one.instance.id,))
    await two.hold(account, 90)

    settlement = await one.ledger.settle(hold, an_outcome(80))

    assert (settlement.charged, settlement.shortfall) == (10, 70)


async def test_what_is_owed_late_never_passes_the_tokens_spend_cap(
    replicas: list[PostgresBooks],
) -> None:
    one, two = replicas
    account = await one.account(1000)
    token = await one.token(account, 100, "capped")
    hold = await one.hold(account, 80, token_id=token, spend_cap=100)
    await two.database.fetch("SELECT * FROM expire_holds(?)", (one.instance.id,))
    await two.charge(account, 60, cost=60, token_id=token, spend_cap=100)
    held = await two.hold(account, 25, token_id=token, spend_cap=100)

    settlement = await one.ledger.settle(hold, an_outcome(80))

    assert (settlement.charged, settlement.shortfall) == (15, 65)
    assert (await two.ledger.settle(held, an_outcome(25))).charged == 25
    assert await two.database.fetch("SELECT spent, held FROM tokens WHERE id = ?", (token,)) == [
        (100, 0)
    ]


async def test_an_instance_that_was_reaped_begins_anew(replicas: list[PostgresBooks]) -> None:
    one, two = replicas
    account = await one.account(100)
    before = one.instance.id
    await two.database.fetch("SELECT * FROM expire_holds(?)", (before,))
    with pytest.raises(Unavailable):
        await one.hold(account, 10)

    one.clock.advance(5)
    await until(lambda: one.instance.id != before)

    assert (await one.charge(account, 10, cost=10)).charged == 10


async def test_a_clock_that_steps_reaps_nobody(replicas: list[PostgresBooks]) -> None:
    one, two = replicas
    account = await one.account(100)
    hold = await one.hold(account, 10)
    # As a database whose clock is set a day ahead: by its clock every lease has lapsed.
    await two.database.execute(("UPDATE instances SET expires_at = 0", ()))
    two.clock.step(86_400)
    await asyncio.sleep(0.2)

    assert (await one.ledger.settle(hold, an_outcome(4))).charged == 4
    rows = await two.database.fetch("SELECT count(*) FROM instances WHERE reaped")
    assert rows == [(0,)]


async def test_a_database_clock_that_is_set_ahead_ends_no_hold(
    replicas: list[PostgresBooks], postgres: PostgresServer, database_url: str
) -> None:
    one, two = replicas
    account = await one.account(100)
    hold = await one.hold(account, 10)
    with postgres.connect(database_url.rpartition("/")[2]) as connection:
        connection.execute(_A_DAY_AHEAD)
    two.clock.advance(SWEEP_SECONDS)
    await until_nothing(two, "changes")  # by then it has swept

    await one.ledger.settle(hold, an_outcome(4))

    assert await two.database.fetch("SELECT state, late FROM holds") == [("settled", 0)]


async def test_what_changes_while_an_instance_begins_anew_is_heard_of(
    replicas: list[PostgresBooks], postgres: PostgresServer, database_url: str
) -> None:
    one, two = replicas
    accounts = [await one.account(0, name) for name in ("acc_1", "acc_2")]
    heard: list[str] = []

    async def heard_of(changes: Collection[Change]) -> None:
        """It has asked what is new, and will renew next: it is reaped in between."""
        heard.extend(change.subject for change in changes)
        if heard == accounts[:1]:
            with postgres.connect(database_url.rpartition("/")[2]) as connection:
                connection.execute("SELECT * FROM expire_holds(%s)", (one.instance.id,))
                connection.execute("UPDATE accounts SET name = 'new' WHERE id = %s", accounts[1:])

    one.instance.on_changes = heard_of

    await two.database.execute(("UPDATE accounts SET name = 'newer' WHERE id = ?", accounts[:1]))

    await until(lambda: accounts[1] in heard)


async def test_who_was_away_for_longer_than_changes_are_kept_reads_all_again(
    replicas: list[PostgresBooks], postgres: PostgresServer, database_url: str
) -> None:
    one = replicas[0]
    account = await one.account(0)
    heard = set[Change]()

    async def heard_of(changes: Collection[Change]) -> None:
        heard.update(changes)

    one.instance.on_changes = heard_of
    everything = {Change("account", account), Change("token", one.token_of(account))}
    await one.database.execute(("UPDATE accounts SET name = 'old' WHERE id = ?", (account,)))
    await until(lambda: Change("account", account) in heard)
    heard.clear()

    with postgres.connect(database_url.rpartition("/")[2]) as connection:
        connection.execute(b"UPDATE accounts SET name = 'new'; DELETE FROM changes;" + _A_DAY_AHEAD)

    await until(lambda: heard == everything)


async def test_a_hold_whose_client_left_while_it_was_asked_for_is_given_back(
    replicas: list[PostgresBooks],
) -> None:
    one = replicas[0]
    account = await one.account(100)
    asking = asyncio.create_task(one.hold(account, 60))
    await asyncio.sleep(0)

    asking.cancel()
    await asyncio.wait([asking])

    assert (await one.hold(account, 100)).amount == 100


# --- the connection and the server ----------------------------------------------------------------


@_POLICIES
async def test_killed_backends_lose_nothing_and_charge_nothing_twice(
    replicas: list[PostgresBooks], postgres: PostgresServer, database_url: str
) -> None:
    account = await replicas[0].account(100_000)
    name = database_url.rpartition("/")[2]
    done: list[Settlement] = []

    async def work(books: PostgresBooks) -> None:
        for _ in range(60):
            try:
                hold = await books.hold(account, 10)
            except Unavailable:
                continue
            done.append(await books.ledger.settle(hold, an_outcome(7)))

    def kill() -> None:
        with postgres.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                (name,),
            )

    working = asyncio.gather(*(work(books) for books in replicas for _ in range(4)))
    for _ in range(6):
        await asyncio.sleep(0.05)
        await asyncio.to_thread(kill)
    await working

    await until(lambda: all(books.ledger.fault is None for books in replicas))
    assert done
    assert await replicas[0].balance(account) == 100_000 - 7 * len(done)

    # Holds whose answers were lost are given back.
    await until_nothing(replicas[0], "holds WHERE state = 'open'")


@pytest.mark.parametrize("amount", [50, -50])
async def test_an_addition_whose_answer_was_lost_is_told_as_done_and_done_once(
    replicas: list[PostgresBooks],
    postgres: PostgresServer,
    database_url: str,
    tmp_path: Path,
    amount: int,
) -> None:
    account = await replicas[0].account(100)
    with FaultProxy(postgres.port) as wire:
        url = database_url.replace(f":{postgres.port}/", f":{wire.port}/")
        books = await PostgresBooks(url, tmp_path / "far", first_request=3000).open()
        wire.misbehave(CUT, to=b"COMMIT", once=True)

        entry, is_new = await books.ledger.add(
            account, amount, kind="adjustment", ref="adj_1", description="by hand"
        )
        await books.close()

    assert wire.faults_played == {"cut": 1}
    assert (entry.amount, entry.balance_after, is_new) == (amount, 100 + amount, True)
    assert await replicas[0].balance(account) == 100 + amount


async def test_an_addition_of_before_is_not_told_as_new_where_an_answer_was_lost(
    replicas: list[PostgresBooks], postgres: PostgresServer, database_url: str, tmp_path: Path
) -> None:
    account = await replicas[0].account(100)
    await replicas[0].top_up(account, 30, ref="a")
    with FaultProxy(postgres.port) as wire:
        url = database_url.replace(f":{postgres.port}/", f":{wire.port}/")
        books = await PostgresBooks(url, tmp_path / "far", first_request=3000).open()
        books.clock.advance(60)
        wire.misbehave(CUT, to=b"COMMIT", once=True)

        is_new = await books.top_up(account, 30, ref="a")
        await books.close()

    assert wire.faults_played == {"cut": 1}
    assert not is_new
    assert await replicas[0].balance(account) == 130


async def test_credit_whose_lease_is_being_changed_can_be_taken_away(
    replicas: list[PostgresBooks], postgres: PostgresServer, database_url: str, tmp_path: Path
) -> None:
    """The database has leased it, and the replica has not heard of that yet."""
    account = await replicas[0].account(100)
    with FaultProxy(postgres.port) as wire:
        url = database_url.replace(f":{postgres.port}/", f":{wire.port}/")
        books = await PostgresBooks(
            url, tmp_path / "far", policy=EAGER_LEASES, first_request=3000
        ).open()
        wire.misbehave(DELAY, to=b'"kind":"lease"', once=True)
        hold = await books.hold(account, 5)
        await until_nothing(replicas[0], "accounts WHERE held = 5")

        entry, _ = await books.ledger.add(
            account, -95, kind="adjustment", ref="adj_1", description="by hand"
        )
        await books.ledger.settle(hold, an_outcome(5))
        await books.close()

    assert wire.faults_played == {"delay": 1}
    assert entry.balance_after == 5


@pytest.mark.parametrize("policy", [EAGER_LEASES])
async def test_a_charge_that_met_the_end_of_a_fault_stays_before_what_came_after_it(
    replicas: list[PostgresBooks],
) -> None:
    one = replicas[0]
    account = await one.account(1000)
    await one.charge(account, 50, cost=0)
    await one.ledger.refresh(account)
    hold = await one.hold(account, 50)
    lanes = one.ledger._lanes  # pyright: ignore[reportPrivateUsage]
    async with lanes._keeping:  # pyright: ignore[reportPrivateUsage]
        lanes.fault = "the server ended"
        settling = one.ledger.settle(hold, an_outcome(30))
        await asyncio.sleep(0.05)  # until its lane waits to journal it
        one.instance.on_recalls([account])
        lanes.fault = None

    assert (await settling).charged == 30
    await one.ledger.refresh(account)
    rows = await one.database.fetch("SELECT sum(amount)::bigint FROM credit_leases")
    assert rows == [(one.ledger.leased(),)] == [(0,)]
