"""The ledger in one process over one SQLite file.

Because the process owns the file, the balances in its memory are the truth between commits: a hold
is a check and two additions, no disk. A settlement changes the memory at once and goes on the
database's queue; the writer thread gives it its place in the account's chain and commits it with
all that has queued. Two places keep an account's balance, each for one thread: `_Purse` (event
loop: what may still be spent) and `Chains` (writer: the last entry on disk). They meet in the file.

Credit that is added is spendable only once it is on disk; credit that is charged is gone from
memory at once. So a crash can only forget what nobody was told.

While the database cannot be written, charges go to its journal and holds are refused. An addition
that failed then may be on disk all the same; until the file can be asked, the account has the
lesser of the two balances.
"""

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from tollway.clock import Clock, first_id_since
from tollway.database.base import Statement
from tollway.database.sqlite import SqliteDatabase
from tollway.errors import CreditsWhy, Refused, Unavailable, how_many
from tollway.ledger.base import (
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
    added_or_not,
)
from tollway.ledger.charges import (
    Chains,
    Charge,
    Unfiled,
    insert_rows,
    not_written,
    recover,
    rows_of,
    write_rows,
)
from tollway.ledger.idempotency import SqliteIdempotencyKeys
from tollway.ledger.rows import (
    ENTRIES,
    RECEIPT,
    as_entry,
    as_receipt,
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
        self._chains = Chains()
        self._unfiled = Unfiled(self._chains)
        database.file(self._unfiled)
        self.keys = SqliteIdempotencyKeys(database.submit, clock)
        database.on_mended(self._ask_for_balances)

    async def recover(self) -> list[Recovered]:
        """At the start, after a crash or not: settles what the journal and the checkpoints hold.

        Raises `StartError` where the database cannot be written.
        """
        now = self._clock.now()
        recovered = await self._database.recover(
            lambda connection, records: recover(connection, records, now)
        )
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
        return self.hold_at_once(ask)

    def hold_at_once(self, ask: HoldAsk) -> Hold:
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
        amount = ask.amount_max
        if amount > available:
            amount = available
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
        charged = outcome.cost if outcome.cost < hold.amount else hold.amount
        purse = self._purses[hold.account_id]
        purse.held -= hold.amount
        purse.take(charged)
        cap = self._caps.get(hold.token_id) if self._caps else None
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
        charge = Charge(
            hold, outcome, settlement, self._clock.now(), checkpointed, cap is not None, claim
        )
        self._database.submit(_Settle(self._unfiled, self._chains, future, charge))
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

    def leased(self) -> int:
        """All credit is this process's: none has to be leased."""
        return 0

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
                    f"The account has {how_many(purse.balance - purse.held, 'credit')} available "
                    f"and this would take {-amount}. Take at most what is available."
                )
            purse.take(-amount)
        future: asyncio.Future[tuple[Entry, bool]] = asyncio.get_running_loop().create_future()
        # As the file keeps it, so that it reads the same when it comes from there.
        created_at = milliseconds(self._clock.now()) / 1000
        entry = Entry(account_id, 0, kind, amount, 0, ref, description, created_at)
        future.add_done_callback(lambda done: self._added(account_id, amount, done))
        self._database.submit(_Add(self._chains, future, entry, audit, opening))
        try:
            return await asyncio.shield(future)  # a waiter that leaves does not undo it
        except Unavailable as error:
            raise added_or_not() from error

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


class _Settle(Struct, gc=False):
    may_wait: ClassVar[bool] = True

    unfiled: Unfiled
    chains: Chains
    future: asyncio.Future[Settlement]
    charge: Charge

    @property
    def result(self) -> Settlement:
        return self.charge.settlement

    def record(self) -> bytes:
        return _encode(self.charge)

    @staticmethod
    def apply(connection: sqlite3.Connection, batch: Sequence["_Settle"]) -> list[Settlement]:
        batch[0].unfiled.put(connection, [rows_of(work.charge) for work in batch])
        return [work.charge.settlement for work in batch]

    @staticmethod
    def apply_again(connection: sqlite3.Connection, batch: Sequence["_Settle"]) -> list[Settlement]:
        missing = not_written(connection, [rows_of(work.charge) for work in batch])
        write_rows(connection, batch[0].chains, missing)
        return [work.charge.settlement for work in batch]

    @staticmethod
    def rolled_back(batch: Sequence["_Settle"]) -> None:
        batch[0].chains.forget()


class _Add:
    may_wait: ClassVar[bool] = False
    __slots__ = ("audit", "chains", "entry", "future", "opening")

    def __init__(
        self,
        chains: Chains,
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
    may_wait: ClassVar[bool] = True
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
    may_wait: ClassVar[bool] = False

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
