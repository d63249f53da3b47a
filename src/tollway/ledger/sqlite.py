"""The ledger in one process over one SQLite file.

Because the process owns the file, the balances in its memory are the truth between commits: a hold is a check and two
additions, no disk. A settlement changes the memory at once and goes on the database's queue; the writer thread gives it its
place in the account's chain and commits it with all that has queued. Two places keep an account's balance, each for one
thread: `_Purse` (event loop: what may still be spent) and `_Chain` (writer: the last entry on disk). They meet in the file.

Credit that is added is spendable only once it is on disk; credit that is charged is gone from memory at once. So a crash
can only forget what nobody was told.
"""

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from tollway.clock import Clock, first_id_since
from tollway.database.sqlite import SqliteDatabase
from tollway.errors import Refused
from tollway.ledger.base import (
    Attempt,
    Checkpoint,
    Entry,
    EntryKind,
    Hold,
    HoldAsk,
    Liveness,
    NotEnough,
    Outcome,
    Receipt,
    Settlement,
    entry_bytes,
)

_encode = msgspec.json.Encoder().encode


class _Purse:
    """An account's credit as the event loop sees it. The balance is what may be spent or held."""

    __slots__ = ("balance", "held")

    def __init__(self, balance: int) -> None:
        self.balance = balance
        self.held = 0


class _Cap:
    """What a token with a spend cap has spent, and holds now."""

    __slots__ = ("held", "spent")

    def __init__(self, spent: int) -> None:
        self.spent = spent
        self.held = 0


class SqliteLedger:
    def __init__(self, database: SqliteDatabase, clock: Clock, refusal: Liveness) -> None:
        self._database = database
        self._clock = clock
        self._refusal = refusal
        self._purses: dict[str, _Purse] = {}
        self._caps: dict[str, _Cap] = {}
        self._open: dict[str, Hold] = {}
        self._checkpointed: set[str] = set()
        self._chains = _Chains()

    async def load(self) -> None:
        for account_id, balance in await self._database.fetch("SELECT id, balance FROM accounts"):
            self._purses[account_id] = _Purse(balance)
        for token_id, spent in await self._database.fetch(
            "SELECT id, spent FROM tokens WHERE spend_cap IS NOT NULL"
        ):
            self._caps[token_id] = _Cap(spent)

    # --- holds, in memory -----------------------------------------------------------------------------------------

    async def hold(self, ask: HoldAsk) -> Hold:
        if (refusal := self._refusal(ask.account_id, ask.token_id)) is not None:
            raise refusal
        purse = self._purses[ask.account_id]
        available = purse.balance - purse.held
        if available < ask.amount_min:
            raise NotEnough(available, limit="balance")
        amount = min(ask.amount_max, available)
        if ask.token_spend_cap is not None:
            amount = self._hold_under_cap(ask, amount)
        purse.held += amount
        hold = Hold(
            ask.request_id,
            ask.account_id,
            ask.token_id,
            ask.price_id,
            amount,
            available - amount,
            ask.now,
        )
        self._open[ask.request_id] = hold
        return hold

    def _hold_under_cap(self, ask: HoldAsk, amount: int) -> int:
        assert ask.token_spend_cap is not None
        cap = self._caps.setdefault(ask.token_id, _Cap(0))
        left = max(0, ask.token_spend_cap - cap.spent - cap.held)
        if left < ask.amount_min:
            raise NotEnough(left, limit="spend_cap")
        amount = min(amount, left)
        cap.held += amount
        return amount

    def settle(self, hold: Hold, outcome: Outcome) -> asyncio.Future[Settlement]:
        future: asyncio.Future[Settlement] = asyncio.get_running_loop().create_future()
        if self._open.pop(hold.request_id, None) is None:
            raise AssertionError(f"the hold {hold.request_id} was settled before")
        charged = min(outcome.cost, hold.amount)
        purse = self._purses[hold.account_id]
        purse.held -= hold.amount
        purse.balance -= charged
        cap = self._caps.get(hold.token_id)
        if cap is not None:
            cap.held -= hold.amount
            cap.spent += charged
        settlement = Settlement(charged, outcome.cost - charged, purse.balance - purse.held)
        checkpointed = hold.request_id in self._checkpointed
        self._checkpointed.discard(hold.request_id)
        self._database.submit(
            _Settle(
                self._chains,
                future,
                hold,
                outcome,
                settlement,
                self._clock.now(),
                checkpointed,
                cap is not None,
            )
        )
        return future

    def checkpoint(self, checkpoints: Sequence[Checkpoint]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        still_open = [c for c in checkpoints if c.hold.request_id in self._open]
        self._checkpointed.update(c.hold.request_id for c in still_open)
        self._database.submit(_WriteCheckpoints(still_open, future))
        return future

    def available(self, account_id: str) -> int:
        purse = self._purses[account_id]
        return purse.balance - purse.held

    def held(self, account_id: str) -> int:
        return self._purses[account_id].held

    def open_holds(self) -> Sequence[Hold]:
        return list(self._open.values())

    # --- entries that are no charge ---------------------------------------------------------------------------------

    async def add(
        self, account_id: str, amount: int, *, kind: EntryKind, ref: str, description: str
    ) -> tuple[Entry, bool]:
        purse = self._purses.setdefault(account_id, _Purse(0))
        if amount < 0:
            if purse.balance - purse.held + amount < 0:
                raise Refused(
                    f"The account has {purse.balance - purse.held} credits available and this would take "
                    f"{-amount}. Take at most what is available."
                )
            purse.balance += amount
        future: asyncio.Future[tuple[Entry, bool]] = asyncio.get_running_loop().create_future()
        entry = Entry(account_id, 0, kind, amount, 0, ref, description, self._clock.now())
        future.add_done_callback(lambda done: self._added(purse, amount, done))
        self._database.submit(_Add(self._chains, future, entry))
        return await future

    @staticmethod
    def _added(purse: _Purse, amount: int, done: asyncio.Future[tuple[Entry, bool]]) -> None:
        """Credit becomes spendable now; what was taken in advance is given back where nothing was written."""
        written = not done.cancelled() and done.exception() is None and done.result()[1]
        if amount > 0 and written:
            purse.balance += amount
        elif amount < 0 and not written:
            purse.balance -= amount

    # --- reading ----------------------------------------------------------------------------------------------------

    async def entries(self, account_id: str, *, page: int, limit: int) -> tuple[list[Entry], int]:
        return await self._database.read(
            lambda connection: _entries(connection, account_id, page, limit)
        )

    async def receipt(self, request_id: str) -> Receipt | None:
        rows = await self._database.fetch(_RECEIPT, (request_id,))
        return _receipt(rows[0]) if rows else None

    async def admissions_since(self, then: float) -> list[tuple[str, float]]:
        """Account and time (seconds since the epoch) of each request recorded since `then`, oldest first."""
        rows = await self._database.fetch(
            "SELECT account_id, created_at FROM usage WHERE request_id >= ? ORDER BY request_id",
            (first_id_since("req", then),),
        )
        return [(account_id, created_at / 1000) for account_id, created_at in rows]


# --- what the writer thread does --------------------------------------------------------------------------------------


class _Chains:
    """Where each account's chain of entries stands on disk. Only the writer thread touches it."""

    def __init__(self) -> None:
        self._tips: dict[str, tuple[int, int, bytes]] = {}
        self._changed: set[str] = set()

    def append(self, connection: sqlite3.Connection, entry: Entry) -> tuple[Entry, bytes]:
        """The entry with its number and balance, and its hash. Raises `Refused` below zero."""
        tip = self._tips.get(entry.account_id)
        if tip is None:
            tip = connection.execute(
                "SELECT balance, seq, chain_head FROM accounts WHERE id = ?", (entry.account_id,)
            ).fetchone()
        balance, seq, head = tip
        balance += entry.amount
        if balance < 0:
            raise Refused(f"The balance would fall to {balance} credits.")
        placed = Entry(
            entry.account_id,
            seq + 1,
            entry.kind,
            entry.amount,
            balance,
            entry.ref,
            entry.description,
            entry.created_at,
        )
        hash_ = hashlib.sha256(head + entry_bytes(placed)).digest()
        self._tips[entry.account_id] = (balance, seq + 1, hash_)
        self._changed.add(entry.account_id)
        return placed, hash_

    def store(self, connection: sqlite3.Connection) -> None:
        rows = [(*self._tips[account_id], account_id) for account_id in self._changed]
        connection.executemany(
            "UPDATE accounts SET balance = ?, seq = ?, chain_head = ? WHERE id = ?", rows
        )
        self._changed.clear()

    def forget(self) -> None:
        """After a rollback: the file has the truth again."""
        self._tips.clear()
        self._changed.clear()


def genesis(account_id: str) -> bytes:
    """What the first entry of an account's chain is linked to."""
    return hashlib.sha256(b"tollway ledger " + account_id.encode()).digest()


class _Settle:
    __slots__ = (
        "capped",
        "chains",
        "checkpointed",
        "closed_at",
        "future",
        "hold",
        "outcome",
        "settlement",
    )

    def __init__(
        self,
        chains: _Chains,
        future: asyncio.Future[Settlement],
        hold: Hold,
        outcome: Outcome,
        settlement: Settlement,
        closed_at: float,
        checkpointed: bool,
        capped: bool,
    ) -> None:
        self.chains = chains
        self.future = future
        self.hold = hold
        self.outcome = outcome
        self.settlement = settlement
        self.closed_at = closed_at
        self.checkpointed = checkpointed
        self.capped = capped

    @staticmethod
    def apply(connection: sqlite3.Connection, batch: Sequence["_Settle"]) -> list[Settlement]:
        chains = batch[0].chains
        entries: list[tuple[Any, ...]] = []
        for work in batch:
            if work.settlement.charged:
                placed, hash_ = chains.append(connection, _charge_entry(work))
                entries.append(_entry_row(placed, hash_))
        insert_rows(connection, "holds", [_hold_row(work) for work in batch])
        insert_rows(connection, "usage", [_usage_row(work) for work in batch])
        insert_rows(connection, "ledger", entries)
        chains.store(connection)
        connection.executemany(
            "UPDATE tokens SET spent = spent + ? WHERE id = ?",
            [(w.settlement.charged, w.hold.token_id) for w in batch if w.capped],
        )
        connection.executemany(
            "DELETE FROM checkpoints WHERE hold_id = ?",
            [(w.hold.request_id,) for w in batch if w.checkpointed],
        )
        return [work.settlement for work in batch]

    @staticmethod
    def rolled_back(batch: Sequence["_Settle"]) -> None:
        batch[0].chains.forget()


class _Add:
    __slots__ = ("chains", "entry", "future")

    def __init__(
        self, chains: _Chains, future: asyncio.Future[tuple[Entry, bool]], entry: Entry
    ) -> None:
        self.chains = chains
        self.future = future
        self.entry = entry

    @staticmethod
    def apply(connection: sqlite3.Connection, batch: Sequence["_Add"]) -> list[tuple[Entry, bool]]:
        results: list[tuple[Entry, bool]] = []
        for work in batch:
            before = connection.execute(
                _ENTRIES + " WHERE ref = ? AND kind = ?", (work.entry.ref, work.entry.kind)
            ).fetchone()
            if before is not None:
                results.append((_entry(before), False))
                continue
            placed, hash_ = work.chains.append(connection, work.entry)
            insert_rows(connection, "ledger", [_entry_row(placed, hash_)])
            work.chains.store(connection)
            results.append((placed, True))
        return results

    @staticmethod
    def rolled_back(batch: Sequence["_Add"]) -> None:
        batch[0].chains.forget()


class _WriteCheckpoints:
    __slots__ = ("checkpoints", "future")

    def __init__(self, checkpoints: Sequence[Checkpoint], future: asyncio.Future[None]) -> None:
        self.checkpoints = checkpoints
        self.future = future

    @staticmethod
    def apply(connection: sqlite3.Connection, batch: Sequence["_WriteCheckpoints"]) -> list[None]:
        for work in batch:
            connection.executemany(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [_checkpoint_row(checkpoint) for checkpoint in work.checkpoints],
            )
        return [None for _ in batch]

    @staticmethod
    def rolled_back(batch: Sequence["_WriteCheckpoints"]) -> None:
        pass


_ROWS_PER_STATEMENT = 64


def insert_rows(
    connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]
) -> None:
    """One statement for up to 64 rows: sqlite3 gives the interpreter lock away at each, and must win it back."""
    done = 0
    size = _ROWS_PER_STATEMENT
    while done < len(rows):
        while size > len(rows) - done:
            size //= 2
        some = rows[done : done + size]
        values = [value for row in some for value in row]
        connection.execute(_insert_sql(table, len(some[0]), size), values)
        done += size


@lru_cache
def _insert_sql(table: str, columns: int, rows: int) -> str:
    one = "(" + ", ".join("?" * columns) + ")"
    return f"INSERT INTO {table} VALUES " + ", ".join([one] * rows)  # noqa: S608 (the table's name is ours)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _charge_entry(work: _Settle) -> Entry:
    outcome = work.outcome
    return Entry(
        work.hold.account_id,
        0,
        "charge",
        -work.settlement.charged,
        0,
        work.hold.request_id,
        f"{outcome.model}: {outcome.input_tokens} + {outcome.output_tokens} tokens",
        work.closed_at,
    )


def _entry_row(entry: Entry, hash_: bytes) -> tuple[Any, ...]:
    return (
        entry.account_id,
        entry.seq,
        entry.kind,
        entry.amount,
        entry.balance_after,
        entry.ref,
        entry.description,
        _milliseconds(entry.created_at),
        hash_,
    )


def _hold_row(work: _Settle) -> tuple[Any, ...]:
    hold, settlement = work.hold, work.settlement
    state = "settled" if settlement.charged else "released"
    return (
        hold.request_id,
        hold.account_id,
        hold.token_id,
        hold.price_id,
        hold.amount,
        settlement.charged,
        0,
        settlement.shortfall,
        state,
        _milliseconds(hold.held_at),
        _milliseconds(work.closed_at),
    )


def _usage_row(work: _Settle) -> tuple[Any, ...]:
    hold, outcome = work.hold, work.outcome
    first = outcome.first_token_seconds
    return (
        hold.request_id,
        hold.account_id,
        hold.token_id,
        outcome.model,
        outcome.status,
        outcome.source,
        outcome.input_tokens,
        outcome.output_tokens,
        work.settlement.available,
        outcome.upstream,
        outcome.upstream_id,
        _encode(outcome.attempts).decode(),
        outcome.client_request_id,
        _milliseconds(hold.held_at),
        None if first is None else _milliseconds(first),
        _milliseconds(outcome.total_seconds),
    )


def _checkpoint_row(checkpoint: Checkpoint) -> tuple[Any, ...]:
    hold = checkpoint.hold
    return (
        hold.request_id,
        hold.account_id,
        hold.token_id,
        hold.price_id,
        hold.amount,
        checkpoint.model,
        checkpoint.upstream,
        checkpoint.input_tokens,
        checkpoint.output_tokens,
        checkpoint.client_request_id,
        _milliseconds(hold.held_at),
        _milliseconds(checkpoint.now),
    )


_ENTRIES = (
    "SELECT account_id, seq, kind, amount, balance_after, ref, description, created_at FROM ledger"
)

_RECEIPT = """
SELECT usage.request_id, usage.account_id, usage.token_id, usage.model, usage.status, usage.source,
       usage.prompt_tokens, usage.completion_tokens, prices.prompt_rate, prices.completion_rate,
       holds.amount, holds.charged + holds.late, holds.shortfall, usage.remaining, usage.upstream, usage.upstream_id,
       usage.attempts, usage.client_request_id, usage.created_at, usage.first_token_ms, usage.total_ms
  FROM usage JOIN holds ON holds.id = usage.request_id JOIN prices ON prices.id = holds.price_id
 WHERE usage.request_id = ?"""


def _entries(
    connection: sqlite3.Connection, account_id: str, page: int, limit: int
) -> tuple[list[Entry], int]:
    """Entries are numbered without gaps, so a page is a range of numbers: no page costs more than the first."""
    (total,) = connection.execute("SELECT seq FROM accounts WHERE id = ?", (account_id,)).fetchone()
    newest = total - (page - 1) * limit
    rows = connection.execute(
        _ENTRIES + " WHERE account_id = ? AND seq <= ? AND seq > ? ORDER BY seq DESC",
        (account_id, newest, newest - limit),
    ).fetchall()
    return [_entry(row) for row in rows], total


def _entry(row: tuple[Any, ...]) -> Entry:
    return Entry(*row[:7], created_at=row[7] / 1000)


def _receipt(row: tuple[Any, ...]) -> Receipt:
    attempts = msgspec.convert(json.loads(row[16]), tuple[Attempt, ...])
    return Receipt(*row[:16], attempts, row[17], row[18] / 1000, row[19], row[20])


