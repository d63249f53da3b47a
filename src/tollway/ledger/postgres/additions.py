"""Entries that are no charge: what is paid in, given back or corrected by hand. Each is a
transaction of its own, on no lane, and one that takes credit recalls what is leased of it."""

import asyncio
import logging

import msgspec

from tollway.clock import Clock
from tollway.database.base import Statement
from tollway.database.instance import Instance
from tollway.database.postgres import Connection, PostgresDatabase, dollars
from tollway.errors import Refused, Unavailable, how_many
from tollway.ledger.base import Entry, added_or_not
from tollway.ledger.postgres.purses import RECALL_SECONDS_MAX, Purses
from tollway.ledger.rows import ENTRIES, as_entry, entry_hash, entry_row

_TIP = "SELECT balance, held, seq, chain_head FROM accounts WHERE id = $1 FOR UPDATE"
_INSERT_ENTRY = "INSERT INTO ledger VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"

log = logging.getLogger("tollway.ledger")


class Additions:
    def __init__(
        self, database: PostgresDatabase, instance: Instance, clock: Clock, purses: Purses
    ) -> None:
        self._database = database
        self._instance = instance
        self._clock = clock
        self._purses = purses

    async def add(
        self, entry: Entry, audit: Statement | None, opening: Statement | None
    ) -> tuple[Entry, bool]:
        deadline = self._clock.monotonic() + RECALL_SECONDS_MAX
        is_asked_again = False
        while True:
            try:
                written, is_new = await self._add_once(entry, audit, opening)
                return written, is_new or (is_asked_again and _is_same(written, entry))
            except Unavailable as error:
                # It may have been added, and only the answer was lost. Whoever is told that it
                # was not adds it twice.
                if is_asked_again:
                    raise added_or_not() from error
                log.info("adding again: %s", error.message)
                is_asked_again = True
                await self._database.renew()
            except _Leased:
                purse = self._purses.of(entry.account_id)
                if self._clock.monotonic() >= deadline:
                    raise Unavailable(
                        "Replicas have leased the account's credit. Try again later."
                    ) from None
                await asyncio.shield(self._purses.recall(entry.account_id, purse))
                await asyncio.sleep(0.05)

    async def _add_once(
        self, entry: Entry, audit: Statement | None, opening: Statement | None
    ) -> tuple[Entry, bool]:
        async with self._database.transaction() as connection:
            if (before := await _entry(connection, entry)) is not None:
                return before, False
            if opening is not None:
                await _execute(connection, opening)
            row = await connection.fetchrow(_TIP, entry.account_id)
            if row is None:
                raise Refused(f"There is no account {entry.account_id}.")
            # Another addition by this reference may have waited for the same account.
            if (before := await _entry(connection, entry)) is not None:
                return before, False
            balance, held, seq, head = row
            if balance - held + entry.amount < 0 and entry.amount < 0:
                await self._refuse_taking(connection, entry, balance - held)
            placed = msgspec.structs.replace(
                entry, seq=seq + 1, balance_after=balance + entry.amount
            )
            hash_ = entry_hash(head, placed)
            await connection.execute(_INSERT_ENTRY, *entry_row(placed, hash_))
            await connection.execute(
                "UPDATE accounts SET balance = $2, seq = $3, chain_head = $4 WHERE id = $1",
                entry.account_id,
                placed.balance_after,
                placed.seq,
                hash_,
            )
            if audit is not None:
                await _execute(connection, audit)
        purse = self._purses.of(entry.account_id)
        purse.know(placed.balance_after, held, self._clock.monotonic())
        return placed, True

    async def _refuse_taking(self, connection: Connection, entry: Entry, available: int) -> None:
        """Raises why not: there is too little, or leases that can be recalled hold it back."""
        purse = self._purses.of(entry.account_id)
        if purse.is_asking or purse.is_unsure:
            raise _Leased  # of what the database has leased to us we may not have heard yet
        others = await connection.fetchval(
            "SELECT COALESCE(SUM(amount), 0)::bigint FROM credit_leases"
            " WHERE account_id = $1 AND instance <> $2 AND (recalled OR NOT $3)",
            entry.account_id,
            self._instance.id,
            purse.is_barred(self._clock.monotonic()),
        )
        if (purse.free or others) and available + purse.free + others + entry.amount >= 0:
            raise _Leased
        raise Refused(
            f"The account has {how_many(available + purse.free, 'credit')} available and this "
            f"would take {-entry.amount}. Take at most what is available."
        )


class _Leased(Exception):
    """There would be enough, were it not leased."""


def _is_same(written: Entry, asked: Entry) -> bool:
    return (
        msgspec.structs.replace(written, seq=asked.seq, balance_after=asked.balance_after) == asked
    )


async def _entry(connection: Connection, entry: Entry) -> Entry | None:
    row = await connection.fetchrow(
        dollars(ENTRIES + " WHERE ref = ? AND kind = ?"), entry.ref, entry.kind
    )
    return None if row is None else as_entry(tuple(row))


async def _execute(connection: Connection, statement: Statement) -> None:
    sql, parameters = statement
    await connection.execute(dollars(sql), *parameters)
