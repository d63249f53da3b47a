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
from typing import Any

from tollway.clock import Clock, first_id_since
from tollway.database.base import Row, Statement
from tollway.database.instance import HOLD_SECONDS, Instance
from tollway.database.journal import Journal
from tollway.database.postgres import PostgresDatabase
from tollway.errors import Unavailable
from tollway.ledger.base import (
    Checkpoint,
    Entry,
    EntryKind,
    Hold,
    HoldAsk,
    Liveness,
    Outcome,
    Receipt,
    Recovered,
    Settlement,
)
from tollway.ledger.postgres.additions import Additions
from tollway.ledger.postgres.keys import PostgresIdempotencyKeys
from tollway.ledger.postgres.lanes import RETRY_SECONDS, Answer, Lanes, Operation, tell_lost
from tollway.ledger.postgres.leases import TICK_SECONDS, LeasePolicy, Purse
from tollway.ledger.postgres.operations import (
    Open,
    checkpoint_operation,
    hold_of,
    hold_operation,
    no_database,
    recovered_from_checkpoint,
    recovered_from_journal,
    settle_operation,
    why_not,
)
from tollway.ledger.postgres.purses import RECALL_SECONDS_MAX, Purses
from tollway.ledger.rows import ENTRIES, RECEIPT, as_entry, as_receipt, milliseconds

_FORGOTTEN_TICKS = 60

log = logging.getLogger("tollway.ledger")


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
        self._purses = Purses(
            self._lanes, instance, clock, LeasePolicy() if policy is None else policy
        )
        self._additions = Additions(database, instance, clock, self._purses)
        self._caps: dict[str, tuple[int, int]] = {}
        self._open: dict[str, Open] = {}
        self._doubtful: dict[str, str] = {}
        self._ticking: asyncio.Task[None] | None = None
        self.keys = PostgresIdempotencyKeys(database, clock, lambda: instance.id)
        instance.on_recalls = self._purses.recalled
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
            *(recovered_from_journal(*done) for done in journaled if done[1].outcome != "before"),
            *(recovered_from_checkpoint(row) for row in expired),
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
            self._purses.of(account_id).know(balance, held, now)
        for token_id, spent, held in await self._database.fetch(
            "SELECT id, spent, held FROM tokens WHERE spend_cap IS NOT NULL"
        ):
            self._caps[token_id] = (spent, held)

    # --- holds ------------------------------------------------------------------------------------

    def hold_at_once(self, ask: HoldAsk) -> None:
        """The database may have to be asked, each time."""

    async def hold(self, ask: HoldAsk) -> Hold:
        if (refusal := self._refusal(ask.account_id, ask.token_id)) is not None:
            raise refusal
        if self._lanes.fault is not None:
            raise no_database()
        assert ask.request_id not in self._open, "a request holds once"
        purse = self._purses.to_hold(ask.account_id, ask.amount_max)
        if (
            purse.leased
            and purse.free >= ask.amount_max
            and ask.token_spend_cap is None
            and self._instance.is_live
        ):
            purse.in_use += ask.amount_max
            hold = hold_of(ask, ask.amount_max, purse.available)
            self._open[ask.request_id] = Open(hold, self._instance.id, leased=True)
        else:
            hold = await self._hold_in_database(ask, purse)
        self._purses.lease_more(ask.account_id, purse)
        return hold

    async def _hold_in_database(self, ask: HoldAsk, purse: Purse) -> Hold:
        answer = await self._ask_hold(ask, purse, final=False)
        if answer.outcome == "short":
            answer = await self._hold_after_recall(ask, purse)
        if answer.outcome == "lapsed":
            # This instance was reaped and does not know it yet, or registers anew at this moment.
            raise no_database()
        if answer.outcome != "held":
            raise why_not(ask, answer, purse)
        assert answer.granted is not None
        return hold_of(ask, answer.granted, purse.available)

    async def _ask_hold(self, ask: HoldAsk, purse: Purse, *, final: bool) -> Answer:
        instance_id = self._instance.id
        operation = hold_operation(
            ask, instance_id, in_use=purse.in_use, life_ms=self._life_ms, final=final
        )
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.add_done_callback(partial(self._purses.told, purse))
        self._lanes.put(ask.account_id, operation, future)
        try:
            answer = await asyncio.shield(future)
        except asyncio.CancelledError:
            self._void(ask.account_id, ask.request_id)  # comes after it, whatever became of it
            self._open.pop(ask.request_id, None)
            raise
        except Unavailable:
            self._doubtful[ask.request_id] = ask.account_id
            raise no_database() from None
        if answer.outcome == "held":
            assert answer.granted is not None
            hold = hold_of(ask, answer.granted, purse.available)
            self._open[ask.request_id] = Open(hold, instance_id, leased=False)
        if answer.cap_spent is not None and answer.cap_held is not None:
            self._caps[ask.token_id] = (answer.cap_spent, answer.cap_held)
        return answer

    async def _hold_after_recall(self, ask: HoldAsk, purse: Purse) -> Answer:
        """What leases hold back is given back, and then there is enough or there is not."""
        deadline = self._clock.monotonic() + RECALL_SECONDS_MAX
        self._purses.recall(ask.account_id, purse)
        wait_seconds = 0.01
        answer = await self._ask_hold(ask, purse, final=False)
        while answer.outcome == "short":
            if not (answer.unanswered or purse.is_asking or purse.free):
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
            if purse.free:
                self._purses.give_back(ask.account_id, purse)
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
            self._purses.told(self._purses.of(account_id), done)

    def _void_doubtful(self) -> None:
        """The database is back: holds that failed may be there all the same."""
        doubtful, self._doubtful = self._doubtful, {}
        for request_id, account_id in doubtful.items():
            self._void(account_id, request_id)

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
        purse = self._purses.of(account_id)
        if ours.leased and ours.instance == self._instance.id:
            purse.in_use -= hold.amount
            purse.leased -= charged
            expected = purse.available
        else:
            expected = purse.available + hold.amount - charged
        told = Settlement(charged, outcome.cost - charged, expected)
        operation = settle_operation(
            ours,
            outcome,
            in_use=purse.in_use,
            capped=hold.token_id in self._caps,
            now=self._clock.now(),
        )
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
        if answer is not told and answer.is_lost:
            tell_lost(operation)
            if not future.done():
                future.set_exception(Unavailable("The account is not in the database any more."))
                future.exception()  # read, as above
            return
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
                "the hold %s had expired; it is settled late: %d of %d credits are paid",
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
            self._lanes.put(ours.hold.account_id, checkpoint_operation(ours, checkpoint), done)
        return asyncio.ensure_future(_all(written))

    # --- what is known ----------------------------------------------------------------------------

    def available(self, account_id: str) -> int:
        return self._purses.of(account_id).available

    def held(self, account_id: str) -> int:
        purse = self._purses.of(account_id)
        return purse.held - purse.free

    def left_of_cap(self, token_id: str, spend_cap: int) -> int:
        spent, held = self._caps.get(token_id, (0, 0))
        return max(0, spend_cap - spent - held)

    def open_holds(self) -> Sequence[Hold]:
        return [ours.hold for ours in self._open.values()]

    def leased(self) -> int:
        return self._purses.leased()

    async def refresh(
        self, account_id: str, token_id: str | None = None, *, older_than_seconds: float = 0.0
    ) -> None:
        purse = self._purses.of(account_id)
        if self._clock.monotonic() - purse.looked_at < older_than_seconds:
            return
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.add_done_callback(partial(self._purses.told, purse))
        look = {"kind": "look", "account": account_id, "instance": self._instance.id}
        self._lanes.put(account_id, look, future)
        await asyncio.shield(future)
        if token_id is not None:
            for spent, held in await self._database.fetch(
                "SELECT spent, held FROM tokens WHERE id = ? AND spend_cap IS NOT NULL", (token_id,)
            ):
                self._caps[token_id] = (spent, held)

    # --- what goes on beside the requests ---------------------------------------------------------

    async def _tick(self) -> None:
        suspects: set[str] = set()
        for number in itertools.count(1):
            await asyncio.sleep(TICK_SECONDS)
            if number % _FORGOTTEN_TICKS == 0:
                suspects = await self._end_forgotten(suspects)
            if self._lanes.fault is None:
                self.keys.try_again()
            self._purses.tick()

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
        self._purses.lapse()
        self.keys.lapse()

    def _reaped(self, rows: Sequence[Row]) -> None:
        for row in rows:
            log.warning("charged at its checkpoint: %s", recovered_from_checkpoint(row))

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
        adding = asyncio.ensure_future(self._additions.add(entry, audit, opening))
        return await asyncio.shield(adding)  # a waiter that leaves does not undo it

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


async def _all(futures: Sequence[asyncio.Future[Any]]) -> None:
    await asyncio.gather(*futures)
