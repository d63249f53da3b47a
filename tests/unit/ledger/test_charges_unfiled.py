"""Charges that are on disk in short form, and in their tables by the time anybody looks."""

import asyncio
import itertools
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from tests.unit.ledger.books import TOKEN, Books, an_outcome
from tests.unit.ledger.faults import FAILURES, Disk, Failure, mended

from tollway.database import writer
from tollway.errors import Refused
from tollway.ledger import charges


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def books(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Books]:
    """The writer files by itself only when enough charges wait."""
    monkeypatch.setattr(writer, "FILE_IDLE_SECONDS", 3600.0)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    books = await Books(data_dir, disk.database).open()
    await books.account(1000)
    yield books
    await books.close()


def on_disk(books: Books) -> tuple[int, int]:
    """Rows that are not filed, and holds that are: past the process, as a crash would find them."""
    with closing(sqlite3.connect(books.path)) as connection:
        (unfiled,) = connection.execute("SELECT COUNT(*) FROM unfiled").fetchone()
        (holds,) = connection.execute("SELECT COUNT(*) FROM holds").fetchone()
        return unfiled, holds


def until_filed(books: Books, count: int) -> None:
    deadline = time.monotonic() + 5
    while on_disk(books) != (0, count):
        assert time.monotonic() < deadline, "they were not filed"
        time.sleep(0.002)


async def charge_together(books: Books, count: int, cost: int = 7) -> None:
    holds = [await books.hold("acc_1", 10) for _ in range(count)]
    await asyncio.gather(*(books.ledger.settle(hold, an_outcome(cost)) for hold in holds))


async def test_charges_are_told_when_they_are_on_disk_and_filed_before_anybody_reads(
    books: Books,
) -> None:
    await charge_together(books, 3)
    rows, holds = on_disk(books)
    assert rows
    assert holds == 0

    assert (await books.ledger.receipt("req_0002")) is not None
    assert on_disk(books) == (0, 3)
    assert await books.balance("acc_1") == 1000 - 21
    assert books.verify() == []


async def test_who_reads_while_they_are_being_filed_finds_them(books: Books, disk: Disk) -> None:
    await charge_together(books, 1)
    disk.commits.clear()
    disk.begun.clear()
    filing = asyncio.ensure_future(books.top_up("acc_1", 1, ref="later"))
    await asyncio.to_thread(disk.begun.wait, 10)
    asyncio.get_running_loop().call_later(0.1, disk.commits.set)

    receipt = await books.ledger.receipt("req_0001")

    assert receipt is not None
    assert await filing


async def test_who_reads_after_another_write_was_refused_finds_them(books: Books) -> None:
    """It had filed them, and was rolled back."""
    await charge_together(books, 3)
    with pytest.raises(Refused):
        await books.account(0, "acc_1")
    assert on_disk(books)[1] == 0

    receipt = await books.ledger.receipt("req_0001")

    assert receipt is not None


async def test_a_crash_before_they_are_filed_loses_none_and_charges_once(books: Books) -> None:
    await charge_together(books, 3)
    assert on_disk(books)[1] == 0

    await books.crash()

    assert books.recovered == []  # nobody was left in doubt: they had been told
    assert on_disk(books) == (0, 3)
    assert (await books.balance("acc_1"), books.ledger.available("acc_1")) == (979, 979)
    assert books.verify() == []


async def test_one_that_its_tables_have_already_is_left_out_and_takes_none_along(
    books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    await charge_together(books, 2)
    with closing(sqlite3.connect(books.path)) as connection:
        unfiled = connection.execute("SELECT charges FROM unfiled").fetchall()
        await books.balance("acc_1")  # they are filed
        with connection:
            connection.executemany("INSERT INTO unfiled (charges) VALUES (?)", unfiled)
    with pytest.raises(Refused):  # from now on only the file knows what waits
        await books.database.execute(("INSERT INTO accounts SELECT * FROM accounts", ()))

    await charge_together(books, 1)

    assert await books.balance("acc_1") == 1000 - 21
    assert on_disk(books) == (0, 3)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert books.verify() == []


async def test_an_entry_that_is_no_charge_comes_behind_the_charges_before_it(books: Books) -> None:
    await charge_together(books, 2)
    await books.top_up("acc_1", 100, ref="later")

    entries, _ = await books.ledger.entries("acc_1", page=1, limit=10)
    assert [(entry.kind, entry.balance_after) for entry in entries] == [
        ("top_up", 1086),
        ("charge", 986),
        ("charge", 993),
        ("top_up", 1000),
    ]
    assert books.verify() == []


async def test_enough_of_them_are_filed_though_nobody_asks(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charges, "FILE_AT_MIN", 3)
    monkeypatch.setattr(charges, "CHARGES_AN_ACCOUNT", 1)
    await books.charge("acc_1", 10, 7)
    await books.balance("acc_1")  # it is filed, and from now on it is three
    for _ in range(3):
        await books.charge("acc_1", 10, 7)
    assert on_disk(books)[1] == 1
    await books.charge("acc_1", 10, 7)
    assert on_disk(books) == (0, 5)


async def test_of_more_accounts_more_are_filed_at_once(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charges, "FILE_AT_MIN", 3)
    monkeypatch.setattr(charges, "CHARGES_AN_ACCOUNT", 2)
    monkeypatch.setattr(charges, "FILE_AT_MAX", 7)
    accounts = [await books.account(1000, f"acc_of_{number}") for number in range(4)]
    await books.charge("acc_1", 10, 7)
    await books.balance("acc_1")  # it is filed, and from now on it is three

    assert [await charged_until_filed(books, accounts[:n]) for n in (1, 2, 3, 4, 1, 1)] == [
        3, 3, 4, 6, 7, 3
    ]  # fmt: skip
    assert books.verify() == []


async def charged_until_filed(books: Books, accounts: Sequence[str]) -> int:
    """How many charges, each of the next account, had waited when they were filed."""
    _, before = on_disk(books)
    for count, account in enumerate(itertools.cycle(accounts)):
        await books.charge(account, 10, 1)
        if on_disk(books)[1] > before:
            return count
    raise AssertionError


async def test_they_are_filed_when_nothing_comes_any_more(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FILE_IDLE_SECONDS", 0.005)
    await charge_together(books, 3)
    await asyncio.to_thread(until_filed, books, 3)


async def test_a_stop_files_them(books: Books) -> None:
    await charge_together(books, 3)
    await books.database.close()
    assert on_disk(books) == (0, 3)
    await books.open()


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_disk_that_fails_with_some_unfiled_loses_none_and_charges_once(
    books: Books, disk: Disk, failure: Failure
) -> None:
    await charge_together(books, 2)
    disk.failure = failure
    await charge_together(books, 3)
    disk.failure = None
    await mended(books.database)

    assert on_disk(books) == (0, 5)
    assert (await books.balance("acc_1"), books.ledger.available("acc_1")) == (965, 965)
    await charge_together(books, 2)
    assert await books.balance("acc_1") == 951
    assert books.verify() == []


async def test_a_charge_that_cannot_be_filed_takes_none_along(
    books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    taken = (
        "req_0002", "acc_1", TOKEN, "price_1", "m1", "completed", "upstream", "released", 10, 0, 0,
        0, 0, 0, 0, 0, None, None, "[]", None, 0, 0, None, 0,
    )  # fmt: skip
    await books.database.execute((charges.insert_sql("usage", len(taken), 1), taken))
    await charge_together(books, 3)

    with caplog.at_level(logging.CRITICAL):
        assert await books.balance("acc_1") == 1000 - 14
    assert [record.message[:27] for record in caplog.records] == ['could not be filed: [["req_']
    assert on_disk(books) == (0, 3)
    await books.charge("acc_1", 10, 7)
    assert await books.balance("acc_1") == 1000 - 21
