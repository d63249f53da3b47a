"""The ledger in one process over one SQLite file.

Because the process owns the file, the balances in its memory are the truth between commits: a hold
is a check and two additions, no disk. A settlement changes the memory at once and goes on the
database's queue; the writer thread gives it its place in the account's chain and commits it with
all that has queued. Two places keep an account's balance, each for one thread: `_Purse` (event
loop: what may still be spent) and `_Chain` (writer: the last entry on disk). They meet in the file.

Credit that is added is spendable only once it is on disk; credit that is charged is gone from
memory at once. So a crash can only forget what nobody was told.

While the database cannot be written, charges go to its journal and holds are refused. An addition
that failed then may be on disk all the same; until the file can be asked, the account has the
lesser of the two balances.
"""

import asyncio
import hashlib
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, Literal

import msgspec
from msgspec import Struct

from tollway.clock import Clock, first_id_since
from tollway.database.base import Statement
from tollway.database.sqlite import SqliteDatabase
from tollway.errors import CreditsWhy, Refused, Unavailable
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
    Recovered,
    Settlement,
)
from tollway.ledger.idempotency import ClaimEnd, SqliteIdempotencyKeys
from tollway.ledger.rows import (
    ENTRIES,
    RECEIPT,
    as_entry,
    as_receipt,
    entry_hash,
    entry_row,
    milliseconds,
)

RETRY_AFTER_FAULT_SECONDS = 5.0

_encode = msgspec.json.Encoder().encode


class _Purse:
    """An account's credit as the event loop sees it. The balance is what may be spent or held."""

    __slots__ = ("balance", "held", "taken_since")

    def __init__(self, balance: int = 0) -> None:
        self.balance = balance
        self.held = 0
        self.taken_since: int | None = None
        """While the file is asked for the balance: what was taken since the question. Else None."""

    def take(self, amount: int) -> None:
        self.balance -= amount
        if self.taken_since is not None:
            self.taken_since += amount


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
        self._purses = defaultdict[str, _Purse](_Purse)  # an account made just now has no entry yet
        self._caps: dict[str, _Cap] = {}
        self._open: dict[str, Hold] = {}
        self._checkpointed: set[str] = set()
        self._doubtful: set[str] = set()
        self._chains = _Chains()
        self.keys = SqliteIdempotencyKeys(database.submit, clock)
        database.on_mended(self._ask_for_balances)

    async def recover(self) -> list[Recovered]:
        """At the start, after a crash or not: settles what the journal and the checkpoints hold.

        Raises `StartError` where the database cannot be written.
        """
        now = self._clock.now()
        recovered = await self._database.recover(
            lambda connection, records: _recover(connection, records, now)
        )
        self._chains = _Chains()
        await self.load()
        return recovered

    async def load(self) -> None:
        for account_id, balance in await self._database.fetch("SELECT id, balance FROM accounts"):
            self._purses[account_id] = _Purse(balance)
        for token_id, spent in await self._database.fetch(
            "SELECT id, spent FROM tokens WHERE spend_cap IS NOT NULL"
        ):
            self._caps[token_id] = _Cap(spent)

    # --- holds, in memory -------------------------------------------------------------------------

    async def hold(self, ask: HoldAsk) -> Hold:
        if (refusal := self._refusal(ask.account_id, ask.token_id)) is not None:
            raise refusal
        if self._database.fault is not None:
            raise Unavailable(
                "Charges cannot be written now, so no request is taken. Try again later.",
                retry_after_seconds=RETRY_AFTER_FAULT_SECONDS,
            )
        assert ask.request_id not in self._open, "a request holds once"
        purse = self._purses[ask.account_id]
        available = purse.balance - purse.held
        if available < ask.amount_min:
            raise NotEnough(CreditsWhy("balance", purse.balance, purse.held, available))
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
        left = self.left_of_cap(ask.token_id, ask.token_spend_cap)
        if left < ask.amount_min:
            raise NotEnough(CreditsWhy("spend_cap", ask.token_spend_cap, cap.held, left))
        amount = min(amount, left)
        cap.held += amount
        return amount

    def settle(
        self,
        hold: Hold,
        outcome: Outcome,
        render: Callable[[Settlement], bytes] | None = None,
    ) -> asyncio.Future[Settlement]:
        request_id = hold.request_id
        if self._open.pop(request_id, None) is None:
            raise AssertionError(f"the hold {request_id} was settled before")
        charged = min(outcome.cost, hold.amount)
        purse = self._purses[hold.account_id]
        purse.held -= hold.amount
        purse.take(charged)
        cap = self._caps.get(hold.token_id)
        if cap is not None:
            cap.held -= hold.amount
            cap.spent += charged
        settlement = Settlement(charged, outcome.cost - charged, purse.balance - purse.held)
        checkpointed = request_id in self._checkpointed
        if checkpointed:
            self._checkpointed.discard(request_id)
        claim = None
        if self.keys.is_claimed(request_id):
            completed = charged > 0 or outcome.status == "completed"
            reply = None if render is None or not completed else render(settlement)
            claim = self.keys.end(request_id, completed=completed, reply=reply)
        future: asyncio.Future[Settlement] = asyncio.get_running_loop().create_future()
        charge = _Charge(
            hold, outcome, settlement, self._clock.now(), checkpointed, cap is not None, claim
        )
        self._database.submit(_Settle(self._chains, future, charge))
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

    def left_of_cap(self, token_id: str, spend_cap: int) -> int:
        cap = self._caps.get(token_id)
        return spend_cap if cap is None else max(0, spend_cap - cap.spent - cap.held)

    def open_holds(self) -> Sequence[Hold]:
        return list(self._open.values())

    async def refresh(
        self, account_id: str, token_id: str | None = None, *, older_than_seconds: float = 0.0
    ) -> None:
        """What is in memory is the truth."""

    # --- entries that are no charge ---------------------------------------------------------------

    async def add(
        self,
        account_id: str,
        amount: int,
        *,
        kind: EntryKind,
        ref: str,
        description: str,
        audit: Statement | None = None,
        opening: Statement | None = None,
    ) -> tuple[Entry, bool]:
        purse = self._purses[account_id]
        if amount < 0:
            if purse.balance - purse.held + amount < 0:
                if (before := await self._entry(ref, kind)) is not None:
                    return before, False
                raise Refused(
                    f"The account has {purse.balance - purse.held} credits available and this "
                    f"would take {-amount}. Take at most what is available."
                )
            purse.take(-amount)
        future: asyncio.Future[tuple[Entry, bool]] = asyncio.get_running_loop().create_future()
        # As the file keeps it, so that it reads the same when it comes from there.
        created_at = milliseconds(self._clock.now()) / 1000
        entry = Entry(account_id, 0, kind, amount, 0, ref, description, created_at)
        future.add_done_callback(lambda done: self._added(account_id, amount, done))
        self._database.submit(_Add(self._chains, future, entry, audit, opening))
        return await asyncio.shield(future)  # a waiter that leaves does not undo it

    def _added(
        self, account_id: str, amount: int, done: asyncio.Future[tuple[Entry, bool]]
    ) -> None:
        """Credit becomes spendable now; what was taken in advance is given back where nothing was
        written."""
        error = done.exception()
        if isinstance(error, Unavailable):
            self._doubtful.add(account_id)
            return
        written = error is None and done.result()[1]
        purse = self._purses[account_id]
        if amount > 0 and written:
            purse.balance += amount
        elif amount < 0 and not written:
            purse.take(amount)

    def _ask_for_balances(self) -> None:
        """Of accounts whose last addition may be on disk or not. The answer comes in its place
        among the writes: what was taken before it is in it, what is taken since is not."""
        for account_id in list(self._doubtful):
            purse = self._purses[account_id]
            if purse.taken_since is not None:
                continue  # asked already; the answer asks again
            self._doubtful.discard(account_id)
            purse.taken_since = 0
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            future.add_done_callback(partial(self._told_balance, account_id))
            self._database.submit(_AskBalance(future, account_id))

    def _told_balance(self, account_id: str, done: asyncio.Future[int]) -> None:
        purse = self._purses[account_id]
        assert purse.taken_since is not None
        if done.exception() is not None:
            self._doubtful.add(account_id)
        else:
            purse.balance = done.result() - purse.taken_since
        purse.taken_since = None
        if self._doubtful and self._database.fault is None:
            self._ask_for_balances()

    async def _entry(self, ref: str, kind: EntryKind) -> Entry | None:
        rows = await self._database.fetch(ENTRIES + " WHERE ref = ? AND kind = ?", (ref, kind))
        return as_entry(rows[0]) if rows else None

    # --- reading ----------------------------------------------------------------------------------

    async def entries(self, account_id: str, *, page: int, limit: int) -> tuple[list[Entry], int]:
        return await self._database.read(
            lambda connection: _entries(connection, account_id, page, limit)
        )

    async def receipt(self, request_id: str) -> Receipt | None:
        rows = await self._database.fetch(RECEIPT, (request_id,))
        return as_receipt(rows[0]) if rows else None

    async def admissions_since(self, then: float) -> list[tuple[str, float]]:
        rows = await self._database.fetch(
            "SELECT account_id, created_at FROM usage WHERE request_id >= ? ORDER BY request_id",
            (first_id_since("req", then),),
        )
        return [(account_id, created_at / 1000) for account_id, created_at in rows]


# --- what the writer thread does ------------------------------------------------------------------


class _Chains:
    """Where each account's chain of entries stands on disk. Only the writer thread touches it."""

    def __init__(self) -> None:
        self._tips: dict[str, tuple[int, int, bytes]] = {}
        self._changed: set[str] = set()

    def append(self, connection: sqlite3.Connection, entry: Entry) -> tuple[Entry, bytes]:
        """The entry with its number and balance, and its hash. Raises `Refused` below zero."""
        balance, seq, head = self._tip(connection, entry.account_id)
        balance += entry.amount
        if balance < 0:
            raise Refused(f"The balance would fall to {balance} credits.")
        placed = msgspec.structs.replace(entry, seq=seq + 1, balance_after=balance)
        hash_ = entry_hash(head, placed)
        self._tips[entry.account_id] = (balance, seq + 1, hash_)
        self._changed.add(entry.account_id)
        return placed, hash_

    def append_charge(self, connection: sqlite3.Connection, charge: "_Charge") -> tuple[Any, ...]:
        """The row of its entry, as `append` would place it: this is on every request's path."""
        hold, outcome, charged = charge.hold, charge.outcome, charge.settlement.charged
        account_id = hold.account_id
        balance, seq, head = self._tip(connection, account_id)
        balance -= charged
        seq += 1
        assert balance >= 0, f"the charge of {hold.request_id} was never held"
        columns = (
            account_id,
            seq,
            "charge",
            -charged,
            balance,
            hold.request_id,
            f"{outcome.model}: {outcome.input_tokens} + {outcome.output_tokens} tokens",
            milliseconds(charge.closed_at),
        )
        hash_ = hashlib.sha256(head + _encode(columns)).digest()
        self._tips[account_id] = (balance, seq, hash_)
        self._changed.add(account_id)
        return (*columns, hash_)

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
            connection.execute(_store_sql(len(some)), [value for row in some for value in row])
        self._changed.clear()

    def forget(self) -> None:
        """After a rollback: the file has the truth again."""
        self._tips.clear()
        self._changed.clear()


class _Charge(Struct, gc=False):
    """How one hold ended: all that its rows are made of, in the queue and in the journal."""

    hold: Hold
    outcome: Outcome
    settlement: Settlement
    closed_at: float
    checkpointed: bool
    capped: bool
    claim: ClaimEnd | None
    expired: bool = False

    @property
    def state(self) -> str:
        if self.expired:
            return "expired"
        return "settled" if self.settlement.charged else "released"


_decode_charge = msgspec.json.Decoder(_Charge).decode


class _Settle(Struct, gc=False):
    chains: _Chains
    future: asyncio.Future[Settlement]
    charge: _Charge

    @property
    def result(self) -> Settlement:
        return self.charge.settlement

    def record(self) -> bytes:
        return _encode(self.charge)

    @staticmethod
    def apply(connection: sqlite3.Connection, batch: Sequence["_Settle"]) -> list[Settlement]:
        _write_charges(connection, batch[0].chains, [work.charge for work in batch])
        return [work.charge.settlement for work in batch]

    @staticmethod
    def apply_again(connection: sqlite3.Connection, batch: Sequence["_Settle"]) -> list[Settlement]:
        missing = _not_written(connection, [work.charge for work in batch])
        _write_charges(connection, batch[0].chains, missing)
        return [work.charge.settlement for work in batch]

    @staticmethod
    def rolled_back(batch: Sequence["_Settle"]) -> None:
        batch[0].chains.forget()


def _write_charges(
    connection: sqlite3.Connection, chains: _Chains, charges: Sequence[_Charge]
) -> None:
    entries = [
        chains.append_charge(connection, charge) for charge in charges if charge.settlement.charged
    ]
    insert_rows(connection, "holds", [_hold_row(charge) for charge in charges])
    insert_rows(connection, "usage", [_usage_row(charge) for charge in charges])
    insert_rows(connection, "ledger", entries)
    chains.store(connection)
    for charge in charges:
        if charge.capped:
            connection.execute(
                "UPDATE tokens SET spent = spent + ? WHERE id = ? AND spend_cap IS NOT NULL",
                (charge.settlement.charged, charge.hold.token_id),
            )
        if charge.checkpointed:
            connection.execute(
                "DELETE FROM checkpoints WHERE hold_id = ?", (charge.hold.request_id,)
            )
        if charge.claim is not None:
            charge.claim.write(connection)


def _not_written(connection: sqlite3.Connection, charges: Sequence[_Charge]) -> list[_Charge]:
    """Each hold once, and not those that the file has: a failed COMMIT may have reached the
    disk."""
    by_id = {charge.hold.request_id: charge for charge in charges}
    return [
        charge
        for id_, charge in by_id.items()
        if connection.execute("SELECT 1 FROM holds WHERE id = ?", (id_,)).fetchone() is None
    ]


def _recover(
    connection: sqlite3.Connection, records: Sequence[bytes], now: float
) -> list[Recovered]:
    """First the journal: a stream that is settled there may have left its checkpoint here."""
    chains = _Chains()
    journaled = _not_written(connection, [_decode_charge(record) for record in records])
    _write_charges(connection, chains, journaled)
    expired: list[_Charge] = []
    for row in connection.execute(_CHECKPOINTS).fetchall():
        charge = _charge_of_checkpoint(row, chains.balance(connection, row[1]), now)
        _write_charges(connection, chains, [charge])
        if charge.settlement.charged:
            connection.execute(
                "UPDATE idempotency SET completed = 1 WHERE request_id = ? AND completed = 0",
                (charge.hold.request_id,),
            )
        expired.append(charge)
    connection.execute(_DELETE_SETTLED_CHECKPOINTS)
    connection.execute("DELETE FROM idempotency WHERE completed = 0")
    return [
        *(_recovered(charge, "journal") for charge in journaled),
        *(_recovered(charge, "checkpoint") for charge in expired),
    ]


def _charge_of_checkpoint(row: tuple[Any, ...], balance: int, now: float) -> _Charge:
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
    return _Charge(hold, outcome, settlement, now, True, True, None, expired=True)


def _recovered(charge: _Charge, origin: Literal["journal", "checkpoint"]) -> Recovered:
    return Recovered(
        charge.hold.request_id,
        charge.hold.account_id,
        origin,
        charge.outcome.input_tokens,
        charge.outcome.output_tokens,
        charge.settlement.charged,
        charge.settlement.shortfall,
    )


class _Add:
    __slots__ = ("audit", "chains", "entry", "future", "opening")

    def __init__(
        self,
        chains: _Chains,
        future: asyncio.Future[tuple[Entry, bool]],
        entry: Entry,
        audit: Statement | None,
        opening: Statement | None,
    ) -> None:
        self.opening = opening
        self.chains = chains
        self.future = future
        self.entry = entry
        self.audit = audit

    @staticmethod
    def apply(connection: sqlite3.Connection, batch: Sequence["_Add"]) -> list[tuple[Entry, bool]]:
        results: list[tuple[Entry, bool]] = []
        for work in batch:
            before = connection.execute(
                ENTRIES + " WHERE ref = ? AND kind = ?", (work.entry.ref, work.entry.kind)
            ).fetchone()
            if before is not None:
                results.append((as_entry(before), False))
                continue
            if work.opening is not None:
                connection.execute(*work.opening)
            placed, hash_ = work.chains.append(connection, work.entry)
            insert_rows(connection, "ledger", [entry_row(placed, hash_)])
            if work.audit is not None:
                connection.execute(*work.audit)
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
                _CHECKPOINT_INTO,
                [_checkpoint_row(checkpoint) for checkpoint in work.checkpoints],
            )
        return [None for _ in batch]

    @staticmethod
    def rolled_back(batch: Sequence["_WriteCheckpoints"]) -> None:
        pass


class _AskBalance(Struct, gc=False):
    future: asyncio.Future[int]
    account_id: str

    @staticmethod
    def apply(connection: sqlite3.Connection, batch: Sequence["_AskBalance"]) -> list[int]:
        """0 for an account whose first entry, and so its row, did not come to be."""
        return [
            connection.execute(
                "SELECT COALESCE((SELECT balance FROM accounts WHERE id = ?), 0)",
                (work.account_id,),
            ).fetchone()[0]
            for work in batch
        ]

    @staticmethod
    def rolled_back(batch: Sequence["_AskBalance"]) -> None:
        pass


_ROWS_PER_STATEMENT = 64


def insert_rows(
    connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]
) -> None:
    for some in _in_statements(rows):
        values = [value for row in some for value in row]
        connection.execute(_insert_sql(table, len(some[0]), len(some)), values)


def _in_statements(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """One statement for up to 64 rows: sqlite3 gives the interpreter lock away at each, and must
    win it back. A statement for each number of rows is prepared once and kept."""
    for done in range(0, len(rows), _ROWS_PER_STATEMENT):
        yield rows[done : done + _ROWS_PER_STATEMENT]


@cache
def _store_sql(rows: int) -> str:
    values = ", ".join(["(?, ?, ?, ?)"] * rows)
    return (
        f"WITH new (id, balance, seq, head) AS (VALUES {values}) "  # noqa: S608 (only places)
        "UPDATE accounts SET balance = new.balance, seq = new.seq, chain_head = new.head"
        " FROM new WHERE accounts.id = new.id"
    )


@cache
def _insert_sql(table: str, columns: int, rows: int) -> str:
    one = "(" + ", ".join("?" * columns) + ")"
    return f"INSERT INTO {table} VALUES " + ", ".join([one] * rows)  # noqa: S608 (the table's name is ours)


def _hold_row(charge: _Charge) -> tuple[Any, ...]:
    hold, settlement = charge.hold, charge.settlement
    return (
        hold.request_id,
        hold.account_id,
        hold.token_id,
        hold.price_id,
        hold.amount,
        settlement.charged,
        0,
        settlement.shortfall,
        charge.state,
        milliseconds(hold.held_at),
        milliseconds(charge.closed_at),
    )


def _usage_row(charge: _Charge) -> tuple[Any, ...]:
    hold, outcome = charge.hold, charge.outcome
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
        charge.settlement.available,
        outcome.upstream,
        outcome.upstream_id,
        _encode(outcome.attempts).decode(),
        outcome.client_request_id,
        milliseconds(hold.held_at),
        None if first is None else milliseconds(first),
        milliseconds(outcome.total_seconds),
        outcome.cached_tokens,
        outcome.reasoning_tokens,
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
        milliseconds(hold.held_at),
        milliseconds(checkpoint.now),
        checkpoint.cached_tokens,
        checkpoint.reasoning_tokens,
    )


_CHECKPOINT_INTO = (
    "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

# `hold_id IN (SELECT id FROM holds)` would go through every hold there ever was.
_DELETE_SETTLED_CHECKPOINTS = """
DELETE FROM checkpoints
 WHERE EXISTS (SELECT 1 FROM holds WHERE holds.id = checkpoints.hold_id)"""

_CHECKPOINTS = """
SELECT checkpoints.hold_id, checkpoints.account_id, checkpoints.token_id, checkpoints.price_id,
       checkpoints.amount, checkpoints.model, checkpoints.upstream, checkpoints.prompt_tokens,
       checkpoints.completion_tokens, checkpoints.client_request_id, checkpoints.created_at,
       checkpoints.updated_at, checkpoints.cached_tokens, checkpoints.reasoning_tokens,
       prices.prompt_rate, prices.completion_rate,
       COALESCE(prices.cached_prompt_rate, prices.prompt_rate),
       COALESCE(prices.reasoning_rate, prices.completion_rate)
  FROM checkpoints JOIN prices ON prices.id = checkpoints.price_id
 WHERE NOT EXISTS (SELECT 1 FROM holds WHERE holds.id = checkpoints.hold_id)
 ORDER BY checkpoints.hold_id"""


def _entries(
    connection: sqlite3.Connection, account_id: str, page: int, limit: int
) -> tuple[list[Entry], int]:
    """Entries are numbered without gaps, so a page is a range of numbers: no page costs more than
    the first."""
    (total,) = connection.execute("SELECT seq FROM accounts WHERE id = ?", (account_id,)).fetchone()
    newest = total - (page - 1) * limit
    rows = connection.execute(
        ENTRIES + " WHERE account_id = ? AND seq <= ? AND seq > ? ORDER BY seq DESC",
        (account_id, newest, newest - limit),
    ).fetchall()
    return [as_entry(row) for row in rows], total
