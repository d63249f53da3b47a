"""Charges as they come to rest in the SQLite file: what the writer thread does with them.

A charge is three rows (the usage, with how its hold ended; the entry; the account's balance) in
trees that each have a place of their own for it. Writing 32 charges so touches some 20 pages, and
more with many accounts, and costs twice what the fsync behind it does. So under load a batch of
charges is put down as one row of `unfiled`, five pages, which is all that their clients wait for;
and some hundred of them are filed into their tables together, in one transaction with the end of
their `unfiled` rows (`Unfiled`; docs/decisions/0007): the more, the more accounts they are of.

The rows are made once (`ChargeRows`), put down as they are and bound as they are. Their structs
have the columns of their tables in order, and no names where they are written: half the bytes.
"""

import hashlib
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from tollway.errors import Refused, how_many
from tollway.ledger.base import Attempt, Entry, Hold, Outcome, Recovered, Settlement
from tollway.ledger.idempotency import ClaimEnd
from tollway.ledger.rows import entry_hash

FILE_AT_MIN = 128
"""With one account, more at once would be no cheaper."""
FILE_AT_MAX = 1024
"""Who settles while they are filed waits for some 10 ms."""
CHARGES_AN_ACCOUNT = 8
"""To be filed at once, on average: each account has two pages of its own to be written."""

log = logging.getLogger("tollway.ledger")

_encode = msgspec.json.Encoder().encode
_sha256 = hashlib.sha256


class Chains:
    """Where each account's chain of entries stands on disk. Only the writer thread touches it."""

    def __init__(self) -> None:
        self._tips: dict[str, tuple[int, int, bytes]] = {}
        self._changed: set[str] = set()

    def append(self, connection: sqlite3.Connection, entry: Entry) -> tuple[Entry, bytes]:
        """The entry with its number and balance, and its hash. Raises `Refused` below zero."""
        balance, seq, head = self._tip(connection, entry.account_id)
        balance += entry.amount
        if balance < 0:
            raise Refused(f"The balance would fall to {how_many(balance, 'credit')}.")
        placed = msgspec.structs.replace(entry, seq=seq + 1, balance_after=balance)
        hash_ = entry_hash(head, placed)
        self._tips[entry.account_id] = (balance, seq + 1, hash_)
        self._changed.add(entry.account_id)
        return placed, hash_

    def append_charge(self, connection: sqlite3.Connection, rows: "ChargeRows") -> tuple[Any, ...]:
        """The row of its entry, as `append` would place it: this is on every request's path."""
        usage = rows.usage
        account_id, charged = usage.account_id, usage.charged
        balance, seq, head = self._tips.get(account_id) or self._tip(connection, account_id)
        balance -= charged
        seq += 1
        assert balance >= 0, f"the charge of {usage.request_id} was never held"
        columns = (
            account_id,
            seq,
            "charge",
            -charged,
            balance,
            usage.request_id,
            f"{usage.model}: {usage.prompt_tokens} + {usage.completion_tokens} tokens",
            usage.closed_at,
        )
        hash_ = _sha256(head + _encode(columns)).digest()
        self._tips[account_id] = (balance, seq, hash_)
        self._changed.add(account_id)
        # sqlite3 looks for an adapter for bytes, and for none for a bytearray.
        return (*columns, bytearray(hash_))

    def balance(self, connection: sqlite3.Connection, account_id: str) -> int:
        return self._tip(connection, account_id)[0]

    def _tip(self, connection: sqlite3.Connection, account_id: str) -> tuple[int, int, bytes]:
        tip = self._tips.get(account_id)
        if tip is None:
            tip = connection.execute(
                "SELECT balance, seq, chain_head FROM accounts WHERE id = ?", (account_id,)
            ).fetchone()
            if tip is None:
                raise Refused(f"There is no account {account_id}.")
        return tip

    def store(self, connection: sqlite3.Connection) -> None:
        rows = [(account_id, *self._tips[account_id]) for account_id in self._changed]
        for some in _in_statements(rows):
            connection.execute(_store_sql(len(some)), list(chain.from_iterable(some)))
        self._changed.clear()

    def forget(self) -> None:
        """After a rollback: the file has the truth again."""
        self._tips.clear()
        self._changed.clear()


class Charge(Struct, gc=False):
    """How one hold ended: all that its rows are made of, in the queue and in the journal."""

    hold: Hold
    outcome: Outcome
    settlement: Settlement
    closed_at: float
    checkpointed: bool
    capped: bool
    claim: ClaimEnd | None
    expired: bool = False


decode_charge = msgspec.json.Decoder(Charge).decode


class UsageRow(Struct, array_like=True, gc=False):
    """Of the table `usage`, its columns in order: how a hold ended, and what it was used for. Times
    are milliseconds."""

    request_id: str
    account_id: str
    token_id: str
    price_id: str
    model: str
    status: str
    source: str
    state: str
    amount: int
    charged: int
    shortfall: int
    remaining: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    upstream: str | None
    upstream_id: str | None
    attempts: str
    client_request_id: str | None
    created_at: int
    closed_at: int
    first_token_ms: int | None
    total_ms: int


class ChargeRows(Struct, array_like=True, gc=False):
    """What becomes of a charge, but for its place in the account's chain: that is known when it is
    filed."""

    usage: UsageRow
    capped: bool
    checkpointed: bool
    claim: ClaimEnd | None


_decode_rows = msgspec.json.Decoder(list[ChargeRows]).decode


def rows_of(charge: Charge) -> ChargeRows:
    hold, outcome, settlement = charge.hold, charge.outcome, charge.settlement
    charged = settlement.charged
    first = outcome.first_token_seconds
    return ChargeRows(
        UsageRow(
            hold.request_id,
            hold.account_id,
            hold.token_id,
            hold.price_id,
            outcome.model,
            outcome.status,
            outcome.source,
            "expired" if charge.expired else "settled" if charged else "released",
            hold.amount,
            charged,
            settlement.shortfall,
            settlement.available,
            outcome.input_tokens,
            outcome.output_tokens,
            outcome.cached_tokens,
            outcome.reasoning_tokens,
            outcome.upstream,
            outcome.upstream_id,
            _encode(outcome.attempts).decode(),
            outcome.client_request_id,
            # As `milliseconds`, which is four calls, a third of what this function takes.
            round(hold.held_at * 1000),
            round(charge.closed_at * 1000),
            None if first is None else round(first * 1000),
            round(outcome.total_seconds * 1000),
        ),
        charge.capped,
        charge.checkpointed,
        charge.claim,
    )


class Unfiled:
    """The charges that are in `unfiled` and not in their tables yet. Implements the writer's
    `Filing`; only its thread touches it, but for `waits`."""

    def __init__(self, chains: Chains) -> None:
        self.waits = False
        self._chains = chains
        self._rows: list[ChargeRows] = []
        self._file_at = FILE_AT_MIN
        self._is_sure = False  # before the first transaction, and after one that was rolled back
        self._may_add = False

    def begin(self, connection: sqlite3.Connection, *, alone: bool) -> None:
        self._may_add = alone and self._is_sure and len(self._rows) < self._file_at
        if not self._may_add:
            self._file(connection)

    def committed(self) -> None:
        self.waits = bool(self._rows)

    def rolled_back(self) -> None:
        self._rows = []
        self._is_sure = self._may_add = False
        self.waits = True
        self._chains.forget()

    def put(self, connection: sqlite3.Connection, rows: list[ChargeRows]) -> None:
        """Down in short form where that is all the transaction has, else into their tables."""
        if not self._may_add:
            write_rows(connection, self._chains, rows)
            return
        connection.execute("INSERT INTO unfiled (charges) VALUES (?)", (_encode(rows),))
        self._rows += rows

    def _file(self, connection: sqlite3.Connection) -> None:
        rows = self._rows
        if not self._is_sure:
            # A COMMIT that failed may have reached the disk: only the file knows.
            rows = not_written(connection, read_unfiled(connection))
        if rows:
            try:
                write_rows(connection, self._chains, rows)
            except (sqlite3.IntegrityError, AssertionError, Refused):
                connection.execute("ROLLBACK")
                self._chains.forget()
                connection.execute("BEGIN IMMEDIATE")
                self._file_one_by_one(connection, rows)
            self._file_at = _together(len({one.usage.account_id for one in rows}))
        if rows or not self._is_sure:
            connection.execute("DELETE FROM unfiled")
        self._rows = []
        self._is_sure = True

    def _file_one_by_one(self, connection: sqlite3.Connection, rows: Sequence[ChargeRows]) -> None:
        """One that only a bug can have made must not take its neighbours along."""
        for one in rows:
            connection.execute("SAVEPOINT one")
            try:
                write_rows(connection, self._chains, [one])
            except (sqlite3.IntegrityError, AssertionError, Refused) as error:
                connection.execute("ROLLBACK TO one")
                self._chains.forget()
                log.critical("could not be filed: %s", _encode(one).decode(), exc_info=error)
            connection.execute("RELEASE one")


def _together(accounts: int) -> int:
    """How many charges to file at once, where the last were of so many accounts."""
    return min(max(FILE_AT_MIN, CHARGES_AN_ACCOUNT * accounts), FILE_AT_MAX)


def read_unfiled(connection: sqlite3.Connection) -> list[ChargeRows]:
    batches = connection.execute("SELECT charges FROM unfiled ORDER BY id").fetchall()
    return [rows for (batch,) in batches for rows in _decode_rows(batch)]


def write_rows(connection: sqlite3.Connection, chains: Chains, rows: Sequence[ChargeRows]) -> None:
    append = chains.append_charge
    entries = [append(connection, one) for one in rows if one.usage.charged]
    insert_rows(connection, "usage", [astuple(one.usage) for one in rows])
    insert_rows(connection, "ledger", entries)
    chains.store(connection)
    spent: dict[str, int] = {}
    ended: list[tuple[str]] = []
    for one in rows:
        if one.capped:
            token_id = one.usage.token_id
            spent[token_id] = spent.get(token_id, 0) + one.usage.charged
        if one.checkpointed:
            ended.append((one.usage.request_id,))
        if one.claim is not None:
            one.claim.write(connection)
    if spent:
        connection.executemany(
            "UPDATE tokens SET spent = spent + ? WHERE id = ? AND spend_cap IS NOT NULL",
            [(credits, token_id) for token_id, credits in spent.items()],
        )
    if ended:
        connection.executemany("DELETE FROM checkpoints WHERE hold_id = ?", ended)


def not_written(connection: sqlite3.Connection, rows: Sequence[ChargeRows]) -> list[ChargeRows]:
    """Each hold once, and not those that the file has: a failed COMMIT may have reached the
    disk."""
    by_id = {one.usage.request_id: one for one in rows}
    return [
        one
        for id_, one in by_id.items()
        if connection.execute("SELECT 1 FROM usage WHERE request_id = ?", (id_,)).fetchone() is None
    ]


def recover(
    connection: sqlite3.Connection, records: Sequence[bytes], now: float
) -> list[Recovered]:
    """First what was not filed yet, then the journal: a stream that is settled there may have left
    its checkpoint here."""
    chains = Chains()
    write_rows(connection, chains, not_written(connection, read_unfiled(connection)))
    connection.execute("DELETE FROM unfiled")
    kept = [decode_charge(record) for record in records]
    journaled = not_written(connection, [rows_of(charge) for charge in kept])
    write_rows(connection, chains, journaled)
    expired: list[ChargeRows] = []
    for row in connection.execute(_CHECKPOINTS).fetchall():
        rows = rows_of(_charge_of_checkpoint(row, chains.balance(connection, row[1]), now))
        write_rows(connection, chains, [rows])
        if rows.usage.charged:
            connection.execute(
                "UPDATE idempotency SET completed = 1 WHERE request_id = ? AND completed = 0",
                (rows.usage.request_id,),
            )
        expired.append(rows)
    connection.execute(_DELETE_SETTLED_CHECKPOINTS)
    connection.execute("DELETE FROM idempotency WHERE completed = 0")
    return [
        *(_recovered(rows, "journal") for rows in journaled),
        *(_recovered(rows, "checkpoint") for rows in expired),
    ]


def _charge_of_checkpoint(row: tuple[Any, ...], balance: int, now: float) -> Charge:
    """What was delivered at the pinned price, within the hold, and within what the account has: its
    other requests may have been settled by a journal that this one's hold did not survive into."""
    *of_hold, amount, model, upstream, input_tokens, output_tokens, client_id = row[:10]
    held_at_ms, updated_at_ms, cached_tokens, reasoning_tokens, *rates = row[10:]
    prompt_rate, completion_rate, cached_rate, reasoning_rate = rates
    exact = (input_tokens - cached_tokens) * prompt_rate + cached_tokens * cached_rate
    exact += (output_tokens - reasoning_tokens) * completion_rate
    exact += reasoning_tokens * reasoning_rate
    cost = -(-exact // 1_000_000)
    charged = min(cost, amount, balance)
    outcome = Outcome(
        status="interrupted",
        model=model,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        source="checkpoint",
        cost=cost,
        attempts=() if upstream is None else (Attempt(upstream, 200),),
        upstream=upstream,
        client_request_id=client_id,
        total_seconds=(updated_at_ms - held_at_ms) / 1000,
        cached_tokens=cached_tokens,
        reasoning_tokens=reasoning_tokens,
    )
    hold = Hold(*of_hold, amount=amount, available=0, held_at=held_at_ms / 1000)
    settlement = Settlement(charged, cost - charged, balance - charged)
    return Charge(hold, outcome, settlement, now, True, True, None, expired=True)


def _recovered(rows: ChargeRows, origin: Literal["journal", "checkpoint"]) -> Recovered:
    return Recovered(
        rows.usage.request_id,
        rows.usage.account_id,
        origin,
        rows.usage.prompt_tokens,
        rows.usage.completion_tokens,
        rows.usage.charged,
        rows.usage.shortfall,
    )


# `hold_id IN (SELECT request_id FROM usage)` would go through every hold there ever was.
_DELETE_SETTLED_CHECKPOINTS = """
DELETE FROM checkpoints
 WHERE EXISTS (SELECT 1 FROM usage WHERE request_id = checkpoints.hold_id)"""

_CHECKPOINTS = """
SELECT checkpoints.hold_id, checkpoints.account_id, checkpoints.token_id, checkpoints.price_id,
       checkpoints.amount, checkpoints.model, checkpoints.upstream, checkpoints.prompt_tokens,
       checkpoints.completion_tokens, checkpoints.client_request_id, checkpoints.created_at,
       checkpoints.updated_at, checkpoints.cached_tokens, checkpoints.reasoning_tokens,
       prices.prompt_rate, prices.completion_rate,
       COALESCE(prices.cached_prompt_rate, prices.prompt_rate),
       COALESCE(prices.reasoning_rate, prices.completion_rate)
  FROM checkpoints JOIN prices ON prices.id = checkpoints.price_id
 WHERE NOT EXISTS (SELECT 1 FROM usage WHERE request_id = checkpoints.hold_id)
 ORDER BY checkpoints.hold_id"""


_ROWS_PER_STATEMENT = 64


def insert_rows(
    connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]
) -> None:
    for some in _in_statements(rows):
        values: list[Any] = []
        for row in some:  # a third of what list(chain.from_iterable()) takes
            values += row
        connection.execute(insert_sql(table, len(some[0]), len(some)), values)


def _in_statements(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """One statement for up to 64 rows: sqlite3 gives the interpreter lock away at each, and must
    win it back. A statement is prepared once for its number of rows and kept; one for 64 takes
    100 KB, so there are some for 64, 32, 16 and so on, and none for the numbers between."""
    done, size = 0, _ROWS_PER_STATEMENT
    while done < len(rows):
        while size > len(rows) - done:
            size //= 2
        yield rows[done : done + size]
        done += size


@cache
def _store_sql(rows: int) -> str:
    values = ", ".join(["(?, ?, ?, ?)"] * rows)
    return (
        f"WITH new (id, balance, seq, head) AS (VALUES {values}) "  # noqa: S608 (only places)
        "UPDATE OR FAIL accounts SET balance = new.balance, seq = new.seq, chain_head = new.head"
        " FROM new WHERE accounts.id = new.id"
    )


# OR FAIL, here and above: whoever writes rows rolls back himself where one is refused. Without it
# SQLite keeps a journal of each statement, a copy of every page that it touches, in a file: with 64
# accounts more than half of all that the writer wrote.
@cache
def insert_sql(table: str, columns: int, rows: int) -> str:
    one = "(" + ", ".join("?" * columns) + ")"
    return f"INSERT OR FAIL INTO {table} VALUES " + ", ".join([one] * rows)  # noqa: S608 (the table's name is ours)
