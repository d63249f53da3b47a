"""The ledger while its file cannot be written: what was charged is kept, and nothing is charged
twice."""

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.ledger.books import MODEL, Books, a_checkpoint, an_outcome
from tests.unit.ledger.faults import BALLAST_BYTES, FAILURES, Disk, Failure, mended

from tollway.database.base import Statement
from tollway.database.journal import Journal
from tollway.errors import Unavailable
from tollway.ledger.base import Earlier, Recovered, Settlement, genesis

BODY = b"\x01" * 32


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def books(tmp_path: Path, disk: Disk) -> AsyncIterator[Books]:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    books = await Books(data_dir, disk.database).open()
    await books.account(100)
    yield books
    await books.close()


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_charge_that_cannot_be_committed_is_kept_and_applied_once(
    books: Books, disk: Disk, failure: Failure
) -> None:
    holds = [await books.hold("acc_1", 10) for _ in range(3)]
    disk.failure = failure

    answers = await asyncio.gather(*(books.ledger.settle(h, an_outcome(7)) for h in holds))

    assert [answer.charged for answer in answers] == [7, 7, 7]
    assert len(Journal(books.data_dir / "journal").read()) == 3
    disk.failure = None
    await mended(books.database)
    assert (books.data_dir / "journal").read_bytes() == b""
    assert (await books.balance("acc_1"), books.ledger.available("acc_1")) == (79, 79)
    assert books.verify() == []


@pytest.mark.parametrize("failure", FAILURES)
async def test_no_request_is_taken_until_everything_is_in_the_database(
    books: Books, disk: Disk, failure: Failure
) -> None:
    hold = await books.hold("acc_1", 10)
    disk.failure = failure
    await books.ledger.settle(hold, an_outcome(7))

    with pytest.raises(Unavailable) as refusal:
        await books.hold("acc_1", 1)

    assert refusal.value.retry_after_seconds is not None
    disk.failure = None
    await mended(books.database)
    assert (await books.charge("acc_1", 1, cost=1)).charged == 1


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_fault_that_lasts_takes_every_charge_that_comes(
    books: Books, disk: Disk, failure: Failure
) -> None:
    holds = [await books.hold("acc_1", 10) for _ in range(6)]
    disk.failure = failure

    for hold in holds:
        await books.ledger.settle(hold, an_outcome(3))
        await disk.has_refused_again()  # a try to mend comes between them

    disk.failure = None
    await mended(books.database)
    assert await books.balance("acc_1") == 82
    assert books.verify() == []


@pytest.mark.parametrize("failure", FAILURES)
async def test_what_is_no_charge_is_refused(books: Books, disk: Disk, failure: Failure) -> None:
    hold = await books.hold("acc_1", 10)
    disk.failure = failure
    statement = ("INSERT INTO prices VALUES ('price_2', 'm2', 1, 1, 0, NULL, NULL)", ())
    for work in (
        books.top_up("acc_1", 5, ref="a"),
        books.ledger.keys.claim("acc_1", "key", BODY, hold.request_id),
        books.ledger.checkpoint([a_checkpoint(hold, 3, 0.0)]),
        books.database.execute(statement),
    ):
        with pytest.raises(Unavailable):
            await work

    disk.failure = None
    await mended(books.database)
    await books.ledger.settle(hold, an_outcome(7))
    assert books.verify() == []


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_crash_while_charges_wait_in_the_journal_loses_none(
    books: Books, disk: Disk, failure: Failure
) -> None:
    hold = await books.hold("acc_1", 10)
    await books.ledger.checkpoint([a_checkpoint(hold, 3, books.clock.now())])
    disk.failure = failure
    await books.ledger.settle(hold, an_outcome(7))

    await books.crash(disk.mend)

    in_the_file_already = failure == "commit landed and its answer was lost"
    expected = Recovered(hold.request_id, "acc_1", "journal", 1, 3, charged=7, shortfall=0)
    assert books.recovered == ([] if in_the_file_already else [expected])
    assert await books.balance("acc_1") == 93
    assert books.verify() == []
    await books.charge("acc_1", 5, cost=5)


async def test_a_crash_between_commit_and_emptying_the_journal_charges_once(
    books: Books, disk: Disk
) -> None:
    hold = await books.hold("acc_1", 10)
    disk.failure = "begin refused"
    await books.ledger.settle(hold, an_outcome(7))
    journal = (books.data_dir / "journal").read_bytes()
    disk.failure = None
    await mended(books.database)
    (books.data_dir / "journal").write_bytes(journal)

    await books.crash()

    assert books.recovered == []
    assert await books.balance("acc_1") == 93
    assert books.verify() == []


async def test_a_stop_while_the_database_cannot_be_written_keeps_the_journal(
    books: Books, disk: Disk
) -> None:
    hold = await books.hold("acc_1", 10)
    disk.failure = "commit lost"
    await books.ledger.settle(hold, an_outcome(7))
    await books.close()
    disk.failure = None

    await books.open()

    assert [recovered.charged for recovered in books.recovered] == [7]
    assert await books.balance("acc_1") == 93


async def test_a_record_that_is_twice_in_the_journal_charges_once(books: Books, disk: Disk) -> None:
    hold = await books.hold("acc_1", 10)
    disk.failure = "begin refused"
    await books.ledger.settle(hold, an_outcome(7))
    journal = books.data_dir / "journal"
    journal.write_bytes(journal.read_bytes() * 2)

    await books.crash(disk.mend)

    assert await books.balance("acc_1") == 93
    assert books.verify() == []


async def test_a_charge_that_nothing_can_keep_is_not_told_until_something_can(
    books: Books, disk: Disk
) -> None:
    hold = await books.hold("acc_1", 10)
    disk.failure = "begin refused"
    disk.journal_error = errno.EIO

    answer = books.ledger.settle(hold, an_outcome(7))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(answer), 0.1)
    disk.journal_error = None
    assert (await answer).charged == 7
    disk.failure = None
    await mended(books.database)
    assert await books.balance("acc_1") == 93
    assert books.verify() == []


async def test_a_charge_that_waited_in_memory_is_told_when_the_database_takes_it(
    books: Books, disk: Disk
) -> None:
    hold = await books.hold("acc_1", 10)
    disk.failure = "begin refused"
    disk.journal_error = errno.EROFS
    answer = books.ledger.settle(hold, an_outcome(7))
    await disk.has_refused_again()

    disk.failure = None
    disk.journal_error = None

    assert (await answer).charged == 7
    await mended(books.database)
    assert await books.balance("acc_1") == 93
    assert books.verify() == []


# --- the ballast --------------------------------------------------------------------------------


async def test_the_ballast_is_there_from_the_start(books: Books) -> None:
    assert (books.data_dir / "ballast").stat().st_size == BALLAST_BYTES


async def test_a_full_disk_takes_the_ballast_and_no_request_until_it_is_there_again(
    books: Books, disk: Disk
) -> None:
    hold = await books.hold("acc_1", 10)
    disk.failure = "insert finds no room"
    disk.no_room = True

    assert (await books.ledger.settle(hold, an_outcome(7))).charged == 7

    assert not (books.data_dir / "ballast").exists()
    disk.failure = None
    await disk.has_refused_again()
    with pytest.raises(Unavailable):
        await books.hold("acc_1", 1)
    disk.no_room = False
    await mended(books.database)
    assert (books.data_dir / "ballast").exists()
    assert await books.balance("acc_1") == 93


async def test_a_start_without_room_for_the_ballast_takes_no_request(
    books: Books, disk: Disk
) -> None:
    await books.close()
    (books.data_dir / "ballast").unlink()
    disk.no_room = True

    await books.open(with_price=False)

    with pytest.raises(Unavailable):
        await books.hold("acc_1", 1)
    disk.no_room = False
    await mended(books.database)
    await books.hold("acc_1", 1)


# --- what a failed addition leaves open -----------------------------------------------------------


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("amount", [-30, 30])
async def test_memory_and_file_agree_again_after_an_addition_failed(
    books: Books, disk: Disk, failure: Failure, amount: int
) -> None:
    hold = await books.hold("acc_1", 10)
    disk.failure = failure
    with pytest.raises(Unavailable, match="may have been added"):
        await books.ledger.add("acc_1", amount, kind="adjustment", ref="a", description="by hand")
    assert books.ledger.available("acc_1") <= 90
    await books.ledger.settle(hold, an_outcome(7))
    disk.failure = None
    await mended(books.database)

    settlement = await books.charge("acc_1", 5, cost=5)

    balance = await books.balance("acc_1")
    assert settlement.available == balance == books.ledger.available("acc_1")
    assert balance == 88 + (amount if failure.startswith("commit landed") else 0)
    assert books.verify() == []


async def test_what_is_charged_while_the_file_is_asked_is_not_forgotten(
    books: Books, disk: Disk
) -> None:
    hold, other = await books.hold("acc_1", 10), await books.hold("acc_1", 10)
    disk.failure = "commit lost"
    with pytest.raises(Unavailable):
        await books.top_up("acc_1", 30, ref="a")
    await books.ledger.settle(hold, an_outcome(7))
    books.database.on_mended(lambda: books.ledger.settle(other, an_outcome(5)) and None)
    disk.mend()
    await mended(books.database)

    await books.charge("acc_1", 1, cost=1)

    assert (await books.balance("acc_1"), books.ledger.available("acc_1")) == (87, 87)


@pytest.mark.parametrize("failure", FAILURES)
async def test_an_addition_that_failed_may_be_tried_again(
    books: Books, disk: Disk, failure: Failure
) -> None:
    disk.failure = failure
    with pytest.raises(Unavailable):
        await books.top_up("acc_1", 30, ref="a")
    disk.failure = None
    await mended(books.database)

    await books.top_up("acc_1", 30, ref="a")

    assert (await books.balance("acc_1"), books.ledger.available("acc_1")) == (130, 130)


@pytest.mark.parametrize("failure", FAILURES)
async def test_an_account_whose_opening_failed_is_there_with_its_credit_or_not_at_all(
    books: Books, disk: Disk, failure: Failure
) -> None:
    row: Statement = (
        "INSERT INTO accounts (id, name, chain_head, created_at) VALUES (?, ?, ?, 0)",
        ("acc_2", "acc_2", genesis("acc_2")),
    )
    disk.failure = failure
    with pytest.raises(Unavailable):
        await books.ledger.add(
            "acc_2", 50, kind="grant", ref="grant:acc_2", description="first", opening=row
        )
    disk.mend()
    await mended(books.database)
    await books.charge("acc_1", 1, cost=1)  # comes after the question for the balance

    rows = await books.database.fetch("SELECT balance FROM accounts WHERE id = 'acc_2'")
    assert rows == ([(50,)] if failure.startswith("commit landed") else [])
    assert books.ledger.available("acc_2") == sum(balance for (balance,) in rows)
    assert books.verify() == []


# --- keys and caps through the journal ------------------------------------------------------------


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("crash", [False, True])
async def test_a_key_ends_with_a_charge_that_went_through_the_journal(
    books: Books, disk: Disk, failure: Failure, crash: bool
) -> None:
    ask = books.ask("acc_1", 10)
    await books.ledger.keys.claim("acc_1", "key", BODY, ask.request_id)
    hold = await books.ledger.hold(ask)
    disk.failure = failure
    await books.ledger.settle(hold, an_outcome(7), lambda settlement: b"the reply")
    if crash:
        await books.crash(disk.mend)
    else:
        disk.mend()
        await mended(books.database)

    earlier = await books.ledger.keys.claim("acc_1", "key", BODY, "req_9")

    assert earlier == Earlier(hold.request_id, b"the reply")


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_key_whose_claim_failed_may_be_claimed_again(
    books: Books, disk: Disk, failure: Failure
) -> None:
    disk.failure = failure
    with pytest.raises(Unavailable):
        await books.ledger.keys.claim("acc_1", "key", BODY, "req_8")
    disk.mend()
    await mended(books.database)

    assert await books.ledger.keys.claim("acc_1", "key", BODY, "req_9") is None


async def test_a_checkpoint_that_outlived_its_hold_charges_nothing(books: Books) -> None:
    hold = await books.hold("acc_1", 10)
    await books.ledger.settle(hold, an_outcome(7))
    values = (hold.request_id, "acc_1", hold.token_id, hold.price_id, 10, MODEL, None, 1, 4)
    await books.database.execute(
        ("INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, 0, 0, 0, 0)", values)
    )

    await books.crash()

    assert (books.recovered, await books.balance("acc_1")) == ([], 93)
    assert books.verify() == []


async def test_a_spend_cap_counts_a_charge_that_went_through_the_journal(
    books: Books, disk: Disk
) -> None:
    token = await books.token("acc_1", 50, "tok_1")
    hold = await books.hold("acc_1", 30, token_id=token, spend_cap=50)
    disk.failure = "commit lost"
    answer = await books.ledger.settle(hold, an_outcome(30))

    await books.crash(disk.mend)

    assert answer == Settlement(30, 0, 70)
    assert books.verify() == []  # it compares what the token has spent
