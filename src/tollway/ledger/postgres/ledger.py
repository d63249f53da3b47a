"""The ledger of many replicas over one Postgres.

The balance test is in the database, in the statement that holds (`ledger_batch`): no replica trusts
what it remembers of an account. What it remembers is for telling (`available`) and is as old as its
last question.

    hold ──► a row, open ──── settle ──► settled or released
      │          └── its replica is not heard of: expired ── settle, late ──► settled or released
      └────► from leased credit, in memory alone ── settle ──► a row, settled or released

A busy account's holds are taken from credit that was leased in advance (`leases.py`), without a
round trip; then the hold's row comes with its settlement, as it does in SQLite. Either way the
credit is counted in `accounts.held` before anything is sent to a model, and a replica that dies
leaves it there until it is reaped (`database/instance.py`).

A hold whose answer nobody waits for any more (its client left, the connection broke) is ended by
`void`: it may be there or not.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from tollway.clock import Clock, first_id_since
from tollway.database.base import Row, Statement
from tollway.database.instance import Instance
from tollway.database.journal import Journal
from tollway.database.postgres import Connection, PostgresDatabase, dollars
from tollway.errors import (
    AuthenticationFailed,
    CreditsWhy,
    PermissionDenied,
    Refused,
    RequestError,
    Unavailable,
)
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
)
from tollway.ledger.postgres.keys import PostgresIdempotencyKeys
from tollway.ledger.postgres.lanes import RETRY_SECONDS, Answer, Lanes, Operation
from tollway.ledger.postgres.leases import TICK_SECONDS, LeasePolicy, Purse
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
HOLD_SECONDS = 4 * 3600.0
RECALL_SECONDS_MAX = 1.5
_NOTHING_TO_LEASE_SECONDS = 1.0
_FORGOTTEN_TICKS = 60

log = logging.getLogger("tollway.ledger")

_encode = msgspec.json.Encoder().encode


class _Open(Struct, gc=False):
    """A hold of ours: from which instance's lease it is, or a row (`leased` false)."""

    hold: Hold
    instance: str
    leased: bool
    checkpointed: bool = False


class PostgresLedger:
    """`refusal` is asked before the database is: it saves a round trip, and is no more than a
    cache."""

    def __init__(
        self,
        database: PostgresDatabase,
        instance: Instance,
        clock: Clock,
        refusal: Liveness,
        data_dir: Path,
        *,
        policy: LeasePolicy | None = None,
        on_commit: Callable[[int, float], None] | None = None,
        hold_seconds: float = HOLD_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        journal: Journal | None = None,
    ) -> None:
        self._database = database
        self._instance = instance
        self._clock = clock
        self._refusal = refusal
        self._policy = LeasePolicy() if policy is None else policy
        self._life_ms = round(hold_seconds * 1000)
        self._lanes = Lanes(
            database,
            Journal(data_dir / "journal") if journal is None else journal,
            clock,
            lambda: instance.id,
            on_commit=on_commit,
            retry_seconds=retry_seconds,
        )
        self._lanes.on_mended = self._void_doubtful
        self._purses: dict[str, Purse] = {}
        self._active: dict[str, Purse] = {}
        self._caps: dict[str, tuple[int, int]] = {}
        self._open: dict[str, _Open] = {}
        self._doubtful: dict[str, str] = {}
        self._ticking: asyncio.Task[None] | None = None
        self.keys = PostgresIdempotencyKeys(database, clock, lambda: instance.id)
        instance.on_recalls = self._recalled
        instance.on_lapsed = self._lapsed
        instance.on_reaped = self._reaped

    # --- life -----------------------------------------------------------------------------------

    def open_for_commands(self) -> None:
        """Nothing is held from here: what another process left is not this one's."""
        self._lanes.start()

    async def open(self) -> list[Recovered]:
        """Settles what the process before this one left in its journal and its checkpoints, and
        begins. Raises `Unavailable`."""
        journaled = await self._lanes.apply_journal()
        expired = await self._instance.end_previous()
        await self._instance.register()
        await self.keys.begin()
        self._lanes.start()
        self._ticking = asyncio.create_task(self._tick())
        return [
            *(_recovered_from_journal(*done) for done in journaled if done[1].outcome != "before"),
            *(_recovered_from_checkpoint(row) for row in expired),
        ]

    async def close(self) -> None:
        """What is queued is written or journaled; leases and whatever is still held go back."""
        await self._stop_ticking()
        await self.keys.finish()
        await self._lanes.stop()
        await self._instance.stop()

    async def abandon(self) -> None:
        """As a process that dies."""
        await self._stop_ticking()
        await self.keys.abandon()
        await self._lanes.abandon()
        await self._instance.abandon()

    @property
    def fault(self) -> str | None:
        return self._lanes.fault

    @property
    def round_trips(self) -> int:
        """How many batches went to the database, for holds, settlements and all else."""
        return self._lanes.round_trips

    async def load(self) -> None:
        """What all accounts have, for commands that list them."""
        now = self._clock.monotonic()
        for account_id, balance, held in await self._database.fetch(
            "SELECT id, balance, held FROM accounts"
        ):
            self._purse(account_id).know(balance, held, now)
        for token_id, spent, held in await self._database.fetch(
            "SELECT id, spent, held FROM tokens WHERE spend_cap IS NOT NULL"
        ):
            self._caps[token_id] = (spent, held)

    # --- holds ------------------------------------------------------------------------------------

    async def hold(self, ask: HoldAsk) -> Hold:
        if (refusal := self._refusal(ask.account_id, ask.token_id)) is not None:
            raise refusal
        if self._lanes.fault is not None:
            raise _no_database()
        assert ask.request_id not in self._open, "a request holds once"
        purse = self._purse(ask.account_id)
        self._active[ask.account_id] = purse
        purse.count(ask.amount_max)
        if (
            purse.leased
            and purse.free >= ask.amount_max
            and ask.token_spend_cap is None
            and self._instance.is_live
        ):
            purse.in_use += ask.amount_max
            hold = _hold(ask, ask.amount_max, purse.available)
            self._open[ask.request_id] = _Open(hold, self._instance.id, leased=True)
        else:
            hold = await self._hold_in_database(ask, purse)
        self._lease_more(ask.account_id, purse)
        return hold

    async def _hold_in_database(self, ask: HoldAsk, purse: Purse) -> Hold:
        answer = await self._ask_hold(ask, purse, final=False)
        if answer.outcome == "short":
            answer = await self._hold_after_recall(ask, purse)
        if answer.outcome == "lapsed":
            # This instance was reaped and does not know it yet, or registers anew at this moment.
            raise _no_database()
        if answer.outcome != "held":
            raise _why_not(ask, answer, purse)
        assert answer.granted is not None
        return _hold(ask, answer.granted, purse.available)

    async def _ask_hold(self, ask: HoldAsk, purse: Purse, *, final: bool) -> Answer:
        instance_id = self._instance.id
        operation: Operation = {
            "kind": "hold",
            "account": ask.account_id,
            "instance": instance_id,
            "id": ask.request_id,
            "token": ask.token_id,
            "price": ask.price_id,
            "amount": ask.amount_max,
            "least": ask.amount_min,
            "final": final,
            "in_use": purse.in_use,
            "life_ms": self._life_ms,
            "created_at": milliseconds(ask.now),
        }
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.add_done_callback(partial(self._told, purse))
        self._lanes.put(ask.account_id, operation, future)
        try:
            answer = await asyncio.shield(future)
        except asyncio.CancelledError:
            self._void(ask.account_id, ask.request_id)  # comes after it, whatever became of it
            self._open.pop(ask.request_id, None)
            raise
        except Unavailable:
            self._doubtful[ask.request_id] = ask.account_id
            raise _no_database() from None
        if answer.outcome == "held":
            assert answer.granted is not None
            hold = _hold(ask, answer.granted, purse.available)
            self._open[ask.request_id] = _Open(hold, instance_id, leased=False)
        if answer.cap_spent is not None and answer.cap_held is not None:
            self._caps[ask.token_id] = (answer.cap_spent, answer.cap_held)
        return answer

    async def _hold_after_recall(self, ask: HoldAsk, purse: Purse) -> Answer:
        """What leases hold back is given back, and then there is enough or there is not."""
        now = self._clock.monotonic()
        purse.bar(now)
        deadline = now + RECALL_SECONDS_MAX
        self._give_back(ask.account_id, purse)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        recall = {"kind": "recall", "account": ask.account_id, "instance": self._instance.id}
        self._lanes.put(ask.account_id, recall, future)
        wait_seconds = 0.01
        answer = await self._ask_hold(ask, purse, final=False)
        while answer.outcome == "short":
            if not answer.unanswered:
                return await self._ask_hold(ask, purse, final=True)
            if self._clock.monotonic() >= deadline:
                # Another replica has credit that it neither uses nor gives back: nobody can say
                # now whether this request could be paid.
                raise Unavailable(
                    "Other replicas have leased the account's credit and do not answer. Try again.",
                    retry_after_seconds=1.0,
                )
            await asyncio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, 0.2)
            answer = await self._ask_hold(ask, purse, final=False)
        return answer

    def _void(self, account_id: str, request_id: str) -> None:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.add_done_callback(partial(self._voided, account_id, request_id))
        operation = {
            "kind": "void",
            "account": account_id,
            "instance": self._instance.id,
            "id": request_id,
        }
        self._lanes.put(account_id, operation, future)

    def _voided(self, account_id: str, request_id: str, done: asyncio.Future[Answer]) -> None:
        if done.exception() is not None:
            self._doubtful[request_id] = account_id
        else:
            self._told(self._purse(account_id), done)

    def _void_doubtful(self) -> None:
        """The database is back: holds that failed may be there all the same."""
        doubtful, self._doubtful = self._doubtful, {}
        for request_id, account_id in doubtful.items():
            self._void(account_id, request_id)
        self.keys.try_again()

    # --- settlements ------------------------------------------------------------------------------

    def settle(
        self,
        hold: Hold,
        outcome: Outcome,
        render: Callable[[Settlement], bytes] | None = None,
    ) -> asyncio.Future[Settlement]:
        request_id, account_id = hold.request_id, hold.account_id
        ours = self._open.pop(request_id, None)
        if ours is None:
            raise AssertionError(f"the hold {request_id} was settled before")
        charged = min(outcome.cost, hold.amount)
        purse = self._purse(account_id)
        if ours.leased and ours.instance == self._instance.id:
            purse.in_use -= hold.amount
            purse.leased -= charged
            expected = purse.available
        else:
            expected = purse.available + hold.amount - charged
        told = Settlement(charged, outcome.cost - charged, expected)
        operation = self._settle_operation(ours, outcome, purse.in_use)
        if self.keys.is_claimed(request_id):
            completed = charged > 0 or outcome.status == "completed"
            reply = None if render is None or not completed else render(told)
            if reply is not None:
                operation["remaining"] = told.available
            operation |= self.keys.end(request_id, completed=completed, reply=reply)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        future: asyncio.Future[Settlement] = loop.create_future()
        done.add_done_callback(partial(self._settled, purse, hold, operation, told, future))
        self._lanes.put(account_id, operation, done, lambda: told)
        return future

    def _settle_operation(self, ours: _Open, outcome: Outcome, in_use: int) -> Operation:
        hold, first = ours.hold, outcome.first_token_seconds
        return {
            "kind": "settle",
            "account": hold.account_id,
            "instance": ours.instance,
            "id": hold.request_id,
            "token": hold.token_id,
            "price": hold.price_id,
            "amount": hold.amount,
            "leased": ours.leased,
            "capped": hold.token_id in self._caps,
            "checkpointed": ours.checkpointed,
            "cost": outcome.cost,
            "in_use": in_use,
            "description": (
                f"{outcome.model}: {outcome.input_tokens} + {outcome.output_tokens} tokens"
            ),
            "model": outcome.model,
            "status": outcome.status,
            "source": outcome.source,
            "prompt_tokens": outcome.input_tokens,
            "completion_tokens": outcome.output_tokens,
            "cached_tokens": outcome.cached_tokens,
            "reasoning_tokens": outcome.reasoning_tokens,
            "upstream": outcome.upstream,
            "upstream_id": outcome.upstream_id,
            "attempts": _encode(outcome.attempts).decode(),
            "client_request_id": outcome.client_request_id,
            "created_at": milliseconds(hold.held_at),
            "closed_at": milliseconds(self._clock.now()),
            "first_token_ms": None if first is None else milliseconds(first),
            "total_ms": milliseconds(outcome.total_seconds),
        }

    def _settled(
        self,
        purse: Purse,
        hold: Hold,
        operation: Operation,
        told: Settlement,
        future: asyncio.Future[Settlement],
        done: asyncio.Future[Any],
    ) -> None:
        if (error := done.exception()) is not None:
            if not future.done():
                future.set_exception(error)
                future.exception()  # read: a waiter that left does not make asyncio complain
            return
        answer = done.result()
        if answer is told:  # the journal has it
            settlement = told
            if not operation["leased"]:
                purse.held -= hold.amount
                purse.balance -= told.charged
        else:
            settlement = self._settlement(purse, hold, operation, answer)
        if not future.done():
            future.set_result(settlement)

    def _settlement(
        self, purse: Purse, hold: Hold, operation: Operation, answer: Answer
    ) -> Settlement:
        assert answer.paid is not None
        assert answer.unpaid is not None
        assert answer.balance is not None
        assert answer.held is not None
        if answer.outcome == "late":
            log.warning(
                "the hold %s had expired; %d of %d credits were charged late",
                hold.request_id,
                answer.paid,
                operation["cost"],
            )
        purse.know(answer.balance, answer.held, self._clock.monotonic())
        if answer.cap_spent is not None and answer.cap_held is not None:
            self._caps[hold.token_id] = (answer.cap_spent, answer.cap_held)
        remaining = operation.get("remaining")
        if remaining is None:
            free = max(0, answer.own_lease - operation["in_use"])
            remaining = answer.balance - answer.held + free
        return Settlement(answer.paid, answer.unpaid, remaining)

    def checkpoint(self, checkpoints: Sequence[Checkpoint]) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        written: list[asyncio.Future[Any]] = []
        for checkpoint in checkpoints:
            ours = self._open.get(checkpoint.hold.request_id)
            if ours is None:
                continue
            ours.checkpointed = True
            done: asyncio.Future[Any] = loop.create_future()
            written.append(done)
            self._lanes.put(ours.hold.account_id, _checkpoint_operation(ours, checkpoint), done)
        return asyncio.ensure_future(_all(written))

    # --- what is known ----------------------------------------------------------------------------

    def available(self, account_id: str) -> int:
        return self._purse(account_id).available

    def held(self, account_id: str) -> int:
        purse = self._purse(account_id)
        return purse.held - purse.free

    def left_of_cap(self, token_id: str, spend_cap: int) -> int:
        spent, held = self._caps.get(token_id, (0, 0))
        return max(0, spend_cap - spent - held)

    def open_holds(self) -> Sequence[Hold]:
        return [ours.hold for ours in self._open.values()]

    async def refresh(
        self, account_id: str, token_id: str | None = None, *, older_than_seconds: float = 0.0
    ) -> None:
        purse = self._purse(account_id)
        if self._clock.monotonic() - purse.looked_at < older_than_seconds:
            return
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.add_done_callback(partial(self._told, purse))
        look = {"kind": "look", "account": account_id, "instance": self._instance.id}
        self._lanes.put(account_id, look, future)
        await asyncio.shield(future)
        if token_id is not None:
            for spent, held in await self._database.fetch(
                "SELECT spent, held FROM tokens WHERE id = ? AND spend_cap IS NOT NULL", (token_id,)
            ):
                self._caps[token_id] = (spent, held)

    def _purse(self, account_id: str) -> Purse:
        purse = self._purses.get(account_id)
        if purse is None:
            purse = self._purses[account_id] = Purse()
        return purse

    def _told(self, purse: Purse, done: asyncio.Future[Answer]) -> None:
        if done.exception() is None:
            answer = done.result()
            if answer.balance is not None and answer.held is not None:
                purse.know(answer.balance, answer.held, self._clock.monotonic())

    # --- leases -----------------------------------------------------------------------------------

    def _lease_more(self, account_id: str, purse: Purse) -> None:
        target = purse.target(self._policy, self._clock.monotonic())
        if target is not None and self._instance.is_live:
            purse.is_asking = True
            self._ask_lease(account_id, purse, target)

    def _give_back(self, account_id: str, purse: Purse) -> None:
        """All that is leased and not in use."""
        self._ask_lease(account_id, purse, purse.in_use)

    def _ask_lease(self, account_id: str, purse: Purse, target: int) -> None:
        """Less is given up at once, more is there when the answer is."""
        before = purse.leased
        purse.leased = min(before, target)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.add_done_callback(
            partial(self._leased, purse, self._instance.id, purse.leased, target > before)
        )
        operation = {
            "kind": "lease",
            "account": account_id,
            "instance": self._instance.id,
            "before": before,
            "target": target,
            "least": purse.least,
            "share": 2 * (1 + self._instance.others),
        }
        self._lanes.put(account_id, operation, future)

    def _leased(
        self,
        purse: Purse,
        instance_id: str,
        assumed: int,
        asked_for_more: bool,
        done: asyncio.Future[Answer],
    ) -> None:
        if asked_for_more:
            purse.is_asking = False
        if done.exception() is not None or instance_id != self._instance.id:
            return
        answer = done.result()
        self._told(purse, done)
        if answer.outcome == "lapsed":
            return
        purse.leased += answer.own_lease - assumed
        if asked_for_more and answer.own_lease == assumed:
            purse.bar(self._clock.monotonic(), _NOTHING_TO_LEASE_SECONDS)

    def _recalled(self, account_ids: Sequence[str]) -> None:
        for account_id in account_ids:
            purse = self._purse(account_id)
            purse.bar(self._clock.monotonic())
            self._give_back(account_id, purse)

    async def _tick(self) -> None:
        suspects: set[str] = set()
        for number in itertools.count(1):
            await asyncio.sleep(TICK_SECONDS)
            if number % _FORGOTTEN_TICKS == 0:
                suspects = await self._end_forgotten(suspects)
            for account_id, purse in list(self._active.items()):
                target = purse.tick(self._policy)
                if target is not None:
                    self._ask_lease(account_id, purse, target)
                elif purse.is_quiet:
                    del self._active[account_id]

    async def _end_forgotten(self, suspects: set[str]) -> set[str]:
        """Rows that are open and that nobody here has: a statement whose connection had long been
        given up may have been done all the same. Seen twice, they are ended."""
        try:
            rows = await self._database.fetch(
                "SELECT id, account_id FROM holds WHERE instance = ? AND state = 'open'",
                (self._instance.id,),
            )
        except Unavailable:
            return set()
        unknown = {id_: account_id for id_, account_id in rows if id_ not in self._open}
        for id_ in suspects & unknown.keys():
            self._void(unknown[id_], id_)
        return unknown.keys() - suspects

    async def _stop_ticking(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)

    def _lapsed(self) -> None:
        for purse in self._purses.values():
            purse.lapse()
        self.keys.lapse()

    def _reaped(self, rows: Sequence[Row]) -> None:
        for row in rows:
            log.warning("charged at its checkpoint: %s", _recovered_from_checkpoint(row))

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
        # As the database keeps it, so that it reads the same when it comes from there.
        created_at = milliseconds(self._clock.now()) / 1000
        entry = Entry(account_id, 0, kind, amount, 0, ref, description, created_at)
        adding = asyncio.ensure_future(self._add(entry, audit, opening))
        return await asyncio.shield(adding)  # a waiter that leaves does not undo it

    async def _add(
        self, entry: Entry, audit: Statement | None, opening: Statement | None
    ) -> tuple[Entry, bool]:
        deadline = self._clock.monotonic() + RECALL_SECONDS_MAX
        while True:
            try:
                return await self._add_once(entry, audit, opening)
            except _Leased:
                purse = self._purse(entry.account_id)
                if self._clock.monotonic() >= deadline:
                    raise Unavailable(
                        "Replicas have leased the account's credit. Try again later."
                    ) from None
                purse.bar(self._clock.monotonic())
                await self._recall_all(entry.account_id, purse)

    async def _recall_all(self, account_id: str, purse: Purse) -> None:
        self._give_back(account_id, purse)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        recall = {"kind": "recall", "account": account_id, "instance": self._instance.id}
        self._lanes.put(account_id, recall, future)
        await asyncio.shield(future)
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
        purse = self._purse(entry.account_id)
        purse.know(placed.balance_after, held, self._clock.monotonic())
        return placed, True

    async def _refuse_taking(self, connection: Connection, entry: Entry, available: int) -> None:
        """Raises why not: there is too little, or leases that can be recalled hold it back."""
        purse = self._purse(entry.account_id)
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
            f"The account has {available + purse.free} credits available and this "
            f"would take {-entry.amount}. Take at most what is available."
        )

    # --- reading ----------------------------------------------------------------------------------

    async def entries(self, account_id: str, *, page: int, limit: int) -> tuple[list[Entry], int]:
        rows = await self._database.fetch("SELECT seq FROM accounts WHERE id = ?", (account_id,))
        ((total,),) = rows
        newest = total - (page - 1) * limit
        found = await self._database.fetch(
            ENTRIES + " WHERE account_id = ? AND seq <= ? AND seq > ? ORDER BY seq DESC",
            (account_id, newest, newest - limit),
        )
        return [as_entry(row) for row in found], total

    async def receipt(self, request_id: str) -> Receipt | None:
        rows = await self._database.fetch(RECEIPT, (request_id,))
        return as_receipt(rows[0]) if rows else None

    async def admissions_since(self, then: float) -> list[tuple[str, float]]:
        rows = await self._database.fetch(
            "SELECT account_id, created_at FROM usage WHERE request_id >= ? ORDER BY request_id",
            (first_id_since("req", then),),
        )
        return [(account_id, created_at / 1000) for account_id, created_at in rows]


class _Leased(Exception):
    """There would be enough, were it not leased."""


_TIP = "SELECT balance, held, seq, chain_head FROM accounts WHERE id = $1 FOR UPDATE"
_INSERT_ENTRY = "INSERT INTO ledger VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"


async def _all(futures: Sequence[asyncio.Future[Any]]) -> None:
    await asyncio.gather(*futures)


async def _entry(connection: Connection, entry: Entry) -> Entry | None:
    row = await connection.fetchrow(
        dollars(ENTRIES + " WHERE ref = ? AND kind = ?"), entry.ref, entry.kind
    )
    return None if row is None else as_entry(tuple(row))


async def _execute(connection: Connection, statement: Statement) -> None:
    sql, parameters = statement
    await connection.execute(dollars(sql), *parameters)


def _hold(ask: HoldAsk, amount: int, available: int) -> Hold:
    return Hold(
        ask.request_id,
        ask.account_id,
        ask.token_id,
        ask.price_id,
        amount,
        available,
        ask.now,
    )


def _why_not(ask: HoldAsk, answer: Answer, purse: Purse) -> RequestError | NotEnough:
    if answer.outcome == "not enough":
        assert answer.balance is not None
        assert answer.held is not None
        held = answer.held - purse.free
        return NotEnough(CreditsWhy("balance", answer.balance, held, answer.balance - held))
    if answer.outcome == "cap":
        assert ask.token_spend_cap is not None
        assert answer.cap_spent is not None
        assert answer.cap_held is not None
        left = max(0, ask.token_spend_cap - answer.cap_spent - answer.cap_held)
        return NotEnough(CreditsWhy("spend_cap", ask.token_spend_cap, answer.cap_held, left))
    if answer.outcome == "frozen":
        return PermissionDenied(
            "This account was frozen while the request was on its way.", code="account_frozen"
        )
    if answer.outcome == "expired":
        return AuthenticationFailed(
            "This token expired while the request was on its way.", code="token_expired"
        )
    return AuthenticationFailed(
        "This token was revoked while the request was on its way.", code="token_revoked"
    )


def _no_database() -> Unavailable:
    return Unavailable(
        "The database cannot be reached now, so no request is taken. Try again later.",
        retry_after_seconds=RETRY_AFTER_FAULT_SECONDS,
    )


def _checkpoint_operation(ours: _Open, checkpoint: Checkpoint) -> Operation:
    hold = checkpoint.hold
    return {
        "kind": "checkpoint",
        "account": hold.account_id,
        "instance": ours.instance,
        "id": hold.request_id,
        "token": hold.token_id,
        "price": hold.price_id,
        "amount": hold.amount,
        "leased": ours.leased,
        "model": checkpoint.model,
        "upstream": checkpoint.upstream,
        "prompt_tokens": checkpoint.input_tokens,
        "completion_tokens": checkpoint.output_tokens,
        "cached_tokens": checkpoint.cached_tokens,
        "reasoning_tokens": checkpoint.reasoning_tokens,
        "client_request_id": checkpoint.client_request_id,
        "created_at": milliseconds(hold.held_at),
        "closed_at": milliseconds(checkpoint.now),
    }


def _recovered_from_journal(operation: Operation, answer: Answer) -> Recovered:
    return _recovered(
        operation["id"],
        operation["account"],
        "journal",
        operation["prompt_tokens"],
        operation["completion_tokens"],
        answer.paid,
        answer.unpaid,
    )


def _recovered_from_checkpoint(row: Row) -> Recovered:
    request_id, account_id, *numbers = row
    return _recovered(request_id, account_id, "checkpoint", *numbers)


def _recovered(
    request_id: str, account_id: str, origin: Literal["journal", "checkpoint"], *numbers: Any
) -> Recovered:
    """Any: columns that the statement gives as whole numbers."""
    return Recovered(request_id, account_id, origin, *numbers)
