"""What a ledger promises: credit is held before a request runs, charged for what it used, and never
lost or spent twice.

    hold ───► open ──── settle(charge > 0) ──► settled   charge and entry, in one transaction
               │  └──── settle(charge = 0) ──► released  no entry
               └─ recovery after a crash ────► expired   charged what the last checkpoint delivered
                      └─ its process was only stopped, and settles late ──► settled or released

Invariants, at every moment and after every crash:

- a hold ends exactly once, whoever tries, however often;
- 0 <= charge <= hold: what the client was told is the most it pays;
- the balance is the sum of the account's entries, and never below what is held;
- an entry is never changed: each carries the SHA-256 of the one before it.

`hold` is decided where the credit is; `settle` cannot be cancelled: it is under way when it returns
its future, and the future resolves when the charge is on disk.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec
from msgspec import Struct

from tollway.database.base import Statement
from tollway.errors import CreditsWhy, RequestError, Unavailable, how_many

EntryKind = Literal["grant", "top_up", "charge", "late_charge", "refund", "adjustment"]
Status = Literal["completed", "interrupted", "failed"]
UsageSource = Literal["upstream", "counted", "checkpoint"]
"""Who counted the tokens: the upstream said so, Tollway did, or a crash left only its last word."""


class HoldAsk(Struct, frozen=True, gc=False):
    """Hold `amount_max` credits, or whatever is available if that is at least `amount_min`."""

    request_id: str
    account_id: str
    token_id: str
    price_id: str
    amount_max: int
    amount_min: int
    token_spend_cap: int | None
    now: float


class Hold(Struct, frozen=True, gc=False):
    """`available` is what the account had left right after it, in credits."""

    request_id: str
    account_id: str
    token_id: str
    price_id: str
    amount: int
    available: int
    held_at: float


class NotEnough(Exception):
    """A hold's answer where credits do not suffice: those of the account, or of the token's spend
    cap."""

    def __init__(self, why: CreditsWhy) -> None:
        super().__init__(f"{why.available} credits of the {why.limit} are available")
        self.why = why


class Attempt(Struct, frozen=True, gc=False, omit_defaults=True):
    """One try at one upstream. `status` is its HTTP status, None where it gave none; `error` says
    what happened then."""

    upstream: str
    status: int | None
    error: str | None = None


class Outcome(Struct, frozen=True):
    """How a request ended: what it used and what it costs. `cost` is before the hold caps it; times
    are seconds. Cached tokens are among the input's, reasoning tokens among the output's."""

    status: Status
    model: str
    input_tokens: int
    output_tokens: int
    source: UsageSource
    cost: int
    attempts: tuple[Attempt, ...]
    upstream: str | None = None
    upstream_id: str | None = None
    client_request_id: str | None = None
    first_token_seconds: float | None = None
    total_seconds: float = 0.0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Settlement(Struct, frozen=True, gc=False):
    """`available` is the account's balance less its other holds, as the reply's X-Credits-Remaining
    says."""

    charged: int
    shortfall: int
    available: int


class Checkpoint(Struct, frozen=True, gc=False):
    """What a running stream has delivered so far: all that a restart needs to settle its hold."""

    hold: Hold
    model: str
    upstream: str | None
    input_tokens: int
    output_tokens: int
    client_request_id: str | None
    now: float
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Recovered(Struct, frozen=True):
    """A charge that a start found not yet written: where it was kept, and what came of it."""

    request_id: str
    account_id: str
    origin: Literal["journal", "checkpoint"]
    input_tokens: int
    output_tokens: int
    charged: int
    shortfall: int

    def __str__(self) -> str:
        """For the log."""
        short = f", {how_many(self.shortfall, 'credit')} short" if self.shortfall else ""
        return (
            f"the request {self.request_id} of {self.account_id} was charged "
            f"{how_many(self.charged, 'credit')}{short}, for {self.input_tokens} input and "
            f"{self.output_tokens} output tokens, as the {self.origin} says"
        )


class Earlier(Struct, frozen=True):
    """An attempt with the same idempotency key that has completed, and its reply if that was
    kept."""

    request_id: str
    reply: bytes | None


class Entry(Struct, frozen=True):
    """One row of the ledger: `amount` negative for a charge, `ref` the request or the operator's
    reference."""

    account_id: str
    seq: int
    kind: EntryKind
    amount: int
    balance_after: int
    ref: str
    description: str
    created_at: float


class ChargeEntry(Struct, frozen=True):
    """Where a charge is in its account's chain of entries."""

    seq: int
    hash: bytes


class Receipt(Struct, frozen=True):
    """All that is needed to recompute a charge and to find it in the ledger. `remaining` is what
    the reply said; `entry` None: nothing was charged."""

    request_id: str
    account_id: str
    token_id: str
    model: str
    status: Status
    source: UsageSource
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    price_id: str
    input_credits_per_million: int
    output_credits_per_million: int
    cached_credits_per_million: int
    reasoning_credits_per_million: int
    reserved: int
    charged: int
    shortfall: int
    remaining: int
    upstream: str | None
    upstream_id: str | None
    attempts: tuple[Attempt, ...]
    client_request_id: str | None
    created_at: float
    first_token_ms: int | None
    total_ms: int
    entry: ChargeEntry | None


class IdempotencyKeys(Protocol):
    """Each key of an account belongs to one request a day. `Ledger.settle` ends the claim of a
    request that had a hold, in its own transaction; a request that is refused before calls
    `free`."""

    async def claim(
        self, account_id: str, key: str, body_digest: bytes, request_id: str
    ) -> Earlier | None:
        """None: the request has the key, durably, and may run. Raises `IdempotencyConflict` while
        an earlier one runs, and `IdempotencyMismatch` where that had another body."""
        ...

    def free(self, request_id: str) -> None:
        """Gives a key back that was claimed and not settled; nothing for a request without one."""
        ...

    async def sweep(self) -> None:
        """Deletes keys that are older than a day, a bounded number at a time."""
        ...


class Ledger(Protocol):
    @property
    def keys(self) -> IdempotencyKeys: ...

    def hold_at_once(self, ask: HoldAsk) -> Hold | None:
        """As `hold`, for a token and an account that were found to be live in this very turn of the
        event loop; None where it cannot be said without asking the database."""
        ...

    async def hold(self, ask: HoldAsk) -> Hold:
        """Raises `NotEnough`, or why the token or the account may not pay any more
        (`RequestError`), or `Unavailable`."""
        ...

    def settle(
        self,
        hold: Hold,
        outcome: Outcome,
        render: Callable[[Settlement], bytes] | None = None,
    ) -> asyncio.Future[Settlement]:
        """Charges min(cost, hold), gives the rest back and records the usage, once. Not undone by
        cancellation. `render` makes the reply that is kept for the request's idempotency key."""
        ...

    def checkpoint(self, checkpoints: Sequence[Checkpoint]) -> asyncio.Future[None]: ...

    def available(self, account_id: str) -> int:
        """Balance less holds, in credits: what a new request may hold."""
        ...

    def held(self, account_id: str) -> int: ...

    def left_of_cap(self, token_id: str, spend_cap: int) -> int:
        """What a token with this cap may still hold: the cap less what it was charged and what it
        holds now. A refund goes to the account and gives nothing back to the cap, which limits what
        a token that fell into wrong hands can ever do."""
        ...

    def open_holds(self) -> Sequence[Hold]: ...

    def leased(self) -> int:
        """Credits of all accounts that this process alone may hold from, and holds."""
        ...

    async def refresh(
        self, account_id: str, token_id: str | None = None, *, older_than_seconds: float = 0.0
    ) -> None:
        """Where other processes spend from the account too, and what is known is older: asks the
        database, so that `available` and the like say how it stands. Raises `Unavailable`."""
        ...

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
        """Adds an entry that is no charge, on disk when it returns. The same kind and ref adds
        once: the bool says whether this call did. `audit` is written with it, in its transaction,
        and so is `opening`, before it: the row of an account that begins with this entry. Raises
        `Refused` where it would take more than is available, and `Unavailable` where nobody knows
        whether it was added."""
        ...

    async def entries(self, account_id: str, *, page: int, limit: int) -> tuple[list[Entry], int]:
        """Newest first, and how many there are in all."""
        ...

    async def receipt(self, request_id: str) -> Receipt | None: ...

    async def admissions_since(self, then: float) -> list[tuple[str, float]]:
        """Account and time (seconds since the epoch) of each request recorded since `then`, oldest
        first."""
        ...


def added_or_not() -> Unavailable:
    """Who is told to try again adds twice."""
    return Unavailable(
        "The database cannot be written now, and this may have been added all the same. Look at "
        "the account before you add it again; what has a reference adds once."
    )


class Liveness(Protocol):
    def __call__(self, account_id: str, token_id: str) -> RequestError | None:
        """Why this token or account may not pay any more; None if they may."""
        ...


def genesis(account_id: str) -> bytes:
    """What the first entry of an account's chain is linked to."""
    return hashlib.sha256(b"tollway ledger " + account_id.encode()).digest()


_encode_row = msgspec.json.Encoder().encode


def entry_bytes(entry: Entry) -> bytes:
    """What an entry's hash is taken over: its columns as a JSON array, the time in whole
    milliseconds."""
    return _encode_row(
        (
            entry.account_id,
            entry.seq,
            entry.kind,
            entry.amount,
            entry.balance_after,
            entry.ref,
            entry.description,
            round(entry.created_at * 1000),
        )
    )
