"""Credit that a replica has leased: it holds from it without asking the database.

A busy account's holds would each cost a round trip, and all of them would wait for the one row. So
a replica leases some of its credit in advance: `accounts.held` counts it, so nobody else can spend
it, and the database is asked only to lease more, for charges, and by accounts that are not busy.

How much: what the account has lately held in half a second, and at most a share of what is
available, so that leases melt as a balance does and the last credits are taken one hold at a time.
What is not used for two seconds goes back. Where a hold elsewhere finds too little, all leases of
the account are recalled, and each replica keeps what its running requests have.

The numbers here run ahead of the database: they are as if all that was queued had been done, for
the account's lane does it in that order. A lease is therefore always asked for as what it is to
become (`target`), never as a difference: asked twice, it is the same. And one thing is asked at a
time: of two on their way nobody could say which of them the answers have in them.
"""

from msgspec import Struct

TICK_SECONDS = 0.5
_IDLE_TICKS = 4
_BARRED_SECONDS = 5.0


class LeasePolicy(Struct, frozen=True):
    """An account is busy with `busy_holds` in a tick; 0: credit is never leased."""

    busy_holds: int = 8


class Purse:
    """An account's credit as this replica knows it: `balance` and `held` as the database said last,
    of which `leased` is ours to hold from, and `in_use` is held from it.

    `is_asking`: the lease is being changed; `gives_back`: what is not in use is to go back once it
    was. `is_unsure`: an answer was lost, so that more may be leased than is known here."""

    __slots__ = (
        "_amount",
        "_barred_until",
        "_holds",
        "_idle",
        "_largest",
        "_want",
        "balance",
        "gives_back",
        "held",
        "in_use",
        "is_asking",
        "is_unsure",
        "leased",
        "looked_at",
    )

    def __init__(self) -> None:
        self.balance = 0
        self.held = 0
        self.leased = 0
        self.in_use = 0
        self.looked_at = 0.0
        self.is_asking = False
        self.gives_back = False
        self.is_unsure = False
        self._want = 0
        self._holds = 0
        self._amount = 0
        self._largest = 0
        self._idle = 0
        self._barred_until = 0.0

    @property
    def free(self) -> int:
        return self.leased - self.in_use

    @property
    def available(self) -> int:
        """What a new request may hold, as far as we know: what others have leased is not in it."""
        return self.balance - self.held + self.free

    def know(self, balance: int, held: int, now: float) -> None:
        self.balance = balance
        self.held = held
        self.looked_at = now

    def count(self, amount: int) -> None:
        """A hold was asked for: what is leased follows the pace of these."""
        self._holds += 1
        self._amount += amount
        self._largest = max(self._largest, amount)

    def target(self, policy: LeasePolicy, now: float) -> int | None:
        """What to lease in all, where it is time to ask for more."""
        if self.is_asking or not policy.busy_holds or now < self._barred_until:
            return None
        if self._holds >= policy.busy_holds:
            self._want = max(self._want, self._amount, 2 * self._largest)
        if self._want == 0 or 2 * self.free > self._want:
            return None
        return self.in_use + self._want

    @property
    def least(self) -> int:
        """Less than this is not worth leasing: it would not do for one hold."""
        return max(1, self._largest)

    def tick(self, policy: LeasePolicy) -> int | None:
        """What to give back down to, where that is due. Every `TICK_SECONDS`."""
        busy = self._holds >= policy.busy_holds
        self._want = max(self._amount, 2 * self._largest) if busy else 0
        self._idle = 0 if self._holds else self._idle + 1
        if self._holds:
            self._holds, self._amount, self._largest = 0, 0, self._largest if busy else 0
        if self.is_asking:
            return None
        if self.is_unsure:
            return self.in_use
        if self.free == 0:
            return None
        if self._idle >= _IDLE_TICKS:
            return self.in_use
        if busy and self.free > 4 * self._want:
            return self.in_use + self._want
        return None

    def bar(self, now: float, seconds: float = _BARRED_SECONDS) -> None:
        """Nothing is leased for a while: somebody needs the credit, or there is none."""
        self._want = 0
        self._barred_until = max(self._barred_until, now + seconds)

    def is_barred(self, now: float) -> bool:
        return now < self._barred_until

    @property
    def is_quiet(self) -> bool:
        is_settled = self.leased == 0 and not (self.is_asking or self.is_unsure)
        return is_settled and self._holds == 0 and self._idle >= _IDLE_TICKS

    def lapse(self) -> None:
        """The leases are gone with the instance that had them."""
        self.leased = self.in_use = 0
        self.is_unsure = False
        self._want = 0
