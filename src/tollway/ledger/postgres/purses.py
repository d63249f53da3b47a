"""The accounts' purses, and the leases that fill them: more is asked for where an account is busy,
and given back where it is not, or where another replica asks for it."""

import asyncio
from collections.abc import Sequence
from functools import partial

from tollway.clock import Clock
from tollway.database.instance import Instance
from tollway.ledger.postgres.lanes import Answer, Lanes
from tollway.ledger.postgres.leases import LeasePolicy, Purse

RECALL_SECONDS_MAX = 1.5
_NOTHING_TO_LEASE_SECONDS = 1.0


class Purses:
    def __init__(self, lanes: Lanes, instance: Instance, clock: Clock, policy: LeasePolicy) -> None:
        self._lanes = lanes
        self._instance = instance
        self._clock = clock
        self._policy = policy
        self._purses: dict[str, Purse] = {}
        self._active: dict[str, Purse] = {}

    def of(self, account_id: str) -> Purse:
        purse = self._purses.get(account_id)
        if purse is None:
            purse = self._purses[account_id] = Purse()
        return purse

    def leased(self) -> int:
        """Of all accounts: those that have leased any are active."""
        return sum(purse.leased for purse in self._active.values())

    def told(self, purse: Purse, done: asyncio.Future[Answer]) -> None:
        if done.exception() is None:
            answer = done.result()
            if answer.balance is not None and answer.held is not None:
                purse.know(answer.balance, answer.held, self._clock.monotonic())

    def to_hold(self, account_id: str, amount: int) -> Purse:
        """Of an account that a hold is asked of."""
        purse = self._active[account_id] = self.of(account_id)
        purse.count(amount)
        return purse

    def lease_more(self, account_id: str, purse: Purse) -> None:
        target = purse.target(self._policy, self._clock.monotonic())
        if target is not None and self._instance.is_live:
            self._ask_lease(account_id, purse, target)

    def give_back(self, account_id: str, purse: Purse) -> None:
        """All that is leased and not in use."""
        if purse.is_asking:
            purse.gives_back = True
        else:
            self._ask_lease(account_id, purse, purse.in_use)

    def _ask_lease(self, account_id: str, purse: Purse, target: int) -> None:
        """Less is given up at once, more is there when the answer is."""
        self._active[account_id] = purse
        purse.is_asking = True
        purse.gives_back = purse.is_unsure = False
        before = purse.leased
        purse.leased = min(before, target)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.add_done_callback(
            partial(
                self._answered, account_id, purse, self._instance.id, purse.leased, target > before
            )
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

    def _answered(
        self,
        account_id: str,
        purse: Purse,
        instance_id: str,
        assumed: int,
        asked_for_more: bool,
        done: asyncio.Future[Answer],
    ) -> None:
        purse.is_asking = False
        if instance_id == self._instance.id:  # else what it had leased is gone
            self._leased(purse, assumed, asked_for_more, done)
        if purse.gives_back:
            self.give_back(account_id, purse)

    def _leased(
        self, purse: Purse, assumed: int, asked_for_more: bool, done: asyncio.Future[Answer]
    ) -> None:
        if done.exception() is not None:
            purse.is_unsure = True
            return
        answer = done.result()
        self.told(purse, done)
        if answer.outcome == "lapsed":
            return
        purse.leased += answer.own_lease - assumed
        if asked_for_more and answer.own_lease == assumed:
            purse.bar(self._clock.monotonic(), _NOTHING_TO_LEASE_SECONDS)

    def recalled(self, account_ids: Sequence[str]) -> None:
        for account_id in account_ids:
            purse = self.of(account_id)
            purse.bar(self._clock.monotonic())
            self.give_back(account_id, purse)

    def recall(self, account_id: str, purse: Purse) -> asyncio.Future[Answer]:
        """All leases of the account, ours and the other replicas'."""
        purse.bar(self._clock.monotonic())
        self.give_back(account_id, purse)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        operation = {"kind": "recall", "account": account_id, "instance": self._instance.id}
        self._lanes.put(account_id, operation, future)
        return future

    def tick(self) -> None:
        """Every `TICK_SECONDS`."""
        for account_id, purse in list(self._active.items()):
            target = purse.tick(self._policy)
            if target is not None:
                self._ask_lease(account_id, purse, target)
            elif purse.is_quiet:
                del self._active[account_id]

    def lapse(self) -> None:
        for purse in self._purses.values():
            purse.lapse()
