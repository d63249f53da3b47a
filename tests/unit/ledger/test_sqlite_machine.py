"""The ledger as a state machine, over a real file: whatever is done in whatever order, the balance
is the sum of the entries, never below what is held, and `verify` finds nothing."""

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from tests.unit.ledger.books import Books, a_checkpoint, an_outcome
from tests.unit.ledger.faults import FAILURES, Disk, Failure, mended

from tollway.errors import PermissionDenied, Refused, Unavailable
from tollway.ledger.base import EntryKind, Hold, NotEnough

T = TypeVar("T")

ACCOUNTS: tuple[str, ...] = ("acc_1", "acc_2")
CAP = 60
_amounts = st.integers(0, 80)
_accounts = st.sampled_from(ACCOUNTS)


class LedgerMachine(RuleBasedStateMachine):
    """Beside the ledger it keeps the plainest model of one: a balance and the open holds."""

    holds: Bundle[Hold] = Bundle("holds")
    charged: Bundle[tuple[str, str, int]] = Bundle("charged")

    @initialize()
    def open(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.disk = Disk()
        data_dir = Path(self.directory.name) / "data"
        data_dir.mkdir()
        self.balances = dict.fromkeys(ACCOUNTS, 0)
        self.open_holds: dict[str, Hold] = {}
        self.checkpoints: dict[str, int] = {}
        self.spent = 0
        self.references = itertools.count()
        self.books = self.run(Books(data_dir, self.disk.database).open())
        for account in ACCOUNTS:
            self.run(self.books.account(0, account))
        self.run(self.books.token("acc_1", CAP, "tok_1"))

    @rule(account=_accounts, amount=st.integers(1, 200))
    def top_up(self, account: str, amount: int) -> None:
        assert self.add(account, amount, "top_up", f"ref {next(self.references)}")
        self.balances[account] += amount

    @rule(account=_accounts, amount=st.integers(-100, -1))
    def take_away(self, account: str, amount: int) -> None:
        affordable = self.available(account) + amount >= 0
        try:
            self.add(account, amount, "adjustment", f"ref {next(self.references)}")
        except Refused:
            assert not affordable
        else:
            assert affordable
            self.balances[account] += amount

    @rule(charge=charged, share=st.integers(1, 100))
    def refund(self, charge: tuple[str, str, int], share: int) -> None:
        account, request_id, amount = charge
        refunded = -(-amount * share // 100)
        if self.add(account, refunded, "refund", request_id):
            self.balances[account] += refunded

    @rule(target=holds, account=_accounts, most=_amounts, least=_amounts, capped=st.booleans())
    def hold(self, account: str, most: int, least: int, capped: bool) -> Any:
        least = min(most, least)
        left = self.available(account)
        options: dict[str, Any] = {}
        if capped and account == "acc_1":
            options = {"token_id": "tok_1", "spend_cap": CAP}
            left = min(left, CAP - self.spent - self.held("tok_1"))
        holding = self.books.hold(account, most, at_least=least, **options)
        if account in self.books.frozen:
            with pytest.raises(PermissionDenied):
                self.run(holding)
            return nothing()
        if left < least:
            with pytest.raises(NotEnough) as refusal:
                self.run(holding)
            assert refusal.value.why.available == left
            return nothing()
        hold = self.run(holding)
        assert hold.amount == min(most, left)
        self.open_holds[hold.request_id] = hold
        return hold

    @rule(target=charged, hold=consumes(holds), cost=_amounts)
    def settle(self, hold: Hold, cost: int) -> Any:
        if self.open_holds.pop(hold.request_id, None) is None:
            return nothing()  # it died with the process
        settlement = self.run(self.settling(hold, cost))
        amount = min(cost, hold.amount)
        self.charge(hold, amount)
        assert (settlement.charged, settlement.shortfall) == (amount, cost - amount)
        assert settlement.available == self.available(hold.account_id)
        return (hold.account_id, hold.request_id, amount) if amount else nothing()

    @rule(hold=consumes(holds), cost=_amounts, failure=st.sampled_from(FAILURES))
    def settle_while_the_disk_fails(self, hold: Hold, cost: int, failure: Failure) -> None:
        if self.open_holds.pop(hold.request_id, None) is None:
            return
        self.disk.failure = failure
        self.run(self.settling(hold, cost))
        with pytest.raises((Unavailable, PermissionDenied)):
            self.run(self.books.hold(hold.account_id, 0))
        self.disk.mend()
        self.run(mended(self.books.database))
        self.charge(hold, min(cost, hold.amount))

    @rule(hold=holds, cost=_amounts)
    def checkpoint(self, hold: Hold, cost: int) -> None:
        self.run(self.checkpointing(hold, cost))
        if hold.request_id in self.open_holds:
            self.checkpoints[hold.request_id] = cost

    @rule(account=_accounts)
    def freeze_or_thaw(self, account: str) -> None:
        self.books.frozen ^= {account}

    @rule()
    def reopen(self) -> None:
        self.expire_all()
        self.run(self.books.reopen())

    @rule()
    def crash(self) -> None:
        self.expire_all()
        self.run(self.books.crash())

    @invariant()
    def balances_are_as_they_should_be(self) -> None:
        for account in ACCOUNTS:
            assert self.books.ledger.available(account) == self.available(account) >= 0
            assert self.run(self.books.balance(account)) == self.balances[account]

    @invariant()
    def nothing_is_found(self) -> None:
        assert self.books.verify() == []

    def teardown(self) -> None:
        if hasattr(self, "books"):
            self.run(self.books.close())
            self.loop.close()
            self.directory.cleanup()

    # --- the model and what it asks of the ledger -----------------------------------------------

    def run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)

    def available(self, account: str) -> int:
        held = sum(h.amount for h in self.open_holds.values() if h.account_id == account)
        return self.balances[account] - held

    def held(self, token: str) -> int:
        return sum(h.amount for h in self.open_holds.values() if h.token_id == token)

    def charge(self, hold: Hold, amount: int) -> None:
        self.balances[hold.account_id] -= amount
        self.checkpoints.pop(hold.request_id, None)
        if hold.token_id == "tok_1":
            self.spent += amount

    def expire_all(self) -> None:
        for request_id, cost in list(self.checkpoints.items()):
            hold = self.open_holds[request_id]
            self.charge(hold, min(cost, hold.amount))
        self.open_holds.clear()

    def add(self, account: str, amount: int, kind: EntryKind, ref: str) -> bool:
        entry = self.books.ledger.add(account, amount, kind=kind, ref=ref, description="test")
        return self.run(entry)[1]

    async def settling(self, hold: Hold, cost: int) -> Any:
        return await self.books.ledger.settle(hold, an_outcome(cost))

    async def checkpointing(self, hold: Hold, cost: int) -> None:
        await self.books.ledger.checkpoint([a_checkpoint(hold, cost, self.books.clock.now())])


LedgerMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLedgerMachine = pytest.mark.slow(LedgerMachine.TestCase)


def nothing() -> Any:
    """What a rule gives that adds no hold and no charge."""
    return multiple()  # pyright: ignore[reportUnknownVariableType] (a bundle of no type)


# --- all short sequences ------------------------------------------------------------------------

_ACTS = (
    "hold",
    "settle",
    "settle nothing",
    "settle too much",
    "add",
    "take",
    "checkpoint",
    "crash",
)


async def _act(books: Books, account: str, act: str, ref: str) -> None:
    holds = [hold for hold in books.ledger.open_holds() if hold.account_id == account]
    if act == "hold":
        await books.hold(account, 40, at_least=1)
    elif act.startswith("settle") and holds:
        cost = {"settle": 15, "settle nothing": 0, "settle too much": 90}[act]
        await books.ledger.settle(holds[0], an_outcome(cost))
    elif act == "add":
        await books.top_up(account, 30, ref=ref)
    elif act == "take":
        await books.ledger.add(account, -70, kind="adjustment", ref=ref, description="")
    elif act == "checkpoint" and holds:
        await books.ledger.checkpoint([a_checkpoint(holds[0], 9, books.clock.now())])
    elif act == "crash":
        await books.crash()


@pytest.mark.slow
async def test_every_sequence_of_three_acts_after_a_hold_leaves_the_ledger_whole(
    tmp_path: Path,
) -> None:
    (tmp_path / "data").mkdir()
    books = await Books(tmp_path / "data").open()
    for acts in itertools.product(_ACTS, repeat=3):
        account = await books.account(100, " ".join(acts))
        await books.hold(account, 40)
        for number, act in enumerate(acts):
            with contextlib.suppress(NotEnough, Refused):
                await _act(books, account, act, f"{account} {number}")
            held = books.ledger.held(account)
            assert books.ledger.available(account) + held == await books.balance(account)
            assert books.ledger.available(account) >= 0
    assert books.verify() == []
    await books.close()
