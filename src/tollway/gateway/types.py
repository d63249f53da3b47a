"""The values that the stages of a request hand on.

They are msgspec structs and not dataclasses because a frozen dataclass of eight fields takes 1.9 us
to make and one of these 0.2 (docs/decisions/0002).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from tollway.accounts import Account
from tollway.catalogue import Model
from tollway.errors import RequestError
from tollway.ledger.base import Attempt, Hold, Settlement, Status
from tollway.rates.base import RateState
from tollway.tokens import Token
from tollway.upstreams.base import Ask, Upstream
from tollway.wire.requests import ParsedRequest
from tollway.wire.usage import UsageReport


class Call(Struct):
    """One request as it came. `now` is wall-clock, `began` monotonic, both seconds; `refusal` is
    what was wrong with the body already while it was received (too large, not JSON), told only to
    those who may ask. `body` is empty once it was read: that is why this is not frozen."""

    request_id: str
    now: float
    began: float
    address: str
    authorization: bytes | None
    body: bytes
    refusal: RequestError | None = None
    client_request_id: str | None = None
    credits_max: bytes | None = None
    idempotency_key: bytes | None = None
    timeout_ms: bytes | None = None
    session: bytes | None = None

    def completion_id(self) -> str:
        return "chatcmpl-" + self.request_id[4:]


class Caller(Struct, frozen=True, gc=False):
    account: Account
    token: Token
    rate_key: str
    """What the requests of the account are counted under."""


class Cost(Struct, frozen=True, gc=False):
    """The most that a request could cost. `input_tokens_assumed` are charged for where the upstream
    does not say how many there were; `output_tokens_max` is for each of its choices;
    `is_length_named`: it is what the client asked for, or less."""

    input_tokens_max: int
    input_tokens_assumed: int
    output_tokens_max: int
    choices: int
    credits_max: int
    is_length_named: bool = True


class Admission(Struct, frozen=True):
    """A request that may run: its credit is held, its places in the rate and among those in flight
    are taken. `deadline` is the client's own, where it set one, by the monotonic clock."""

    call: Call
    caller: Caller
    model: Model
    parsed: ParsedRequest
    cost: Cost
    hold: Hold
    rate: RateState
    ignored: tuple[str, ...]
    deadline: float | None = None


class Route(Protocol):
    """One request's way through the upstreams of its model. From `enter` or `wait` until `served`,
    `failed` or `abandoned` it is at one of them, and `ask` is what that one is asked."""

    ask: Ask

    def enter(self) -> Upstream | None:
        """The next to ask; None where there is none that takes it at once."""
        ...

    async def wait(self) -> Upstream:
        """Until one takes it. Raises `Unavailable`."""
        ...

    def answered(self) -> None:
        """The first byte of its answer is there. May be called again."""
        ...

    def served(self) -> None: ...

    def failed(self, error: RequestError) -> None: ...

    def abandoned(self) -> None:
        """Nobody waited for the answer."""
        ...

    async def may_try_again(self, error: RequestError) -> bool:
        """Whether to ask another, or the same one again now that it has waited; after `failed`."""
        ...

    def let_go(self) -> None:
        """No other upstream will be asked: what is only needed to ask is dropped."""
        ...


class Standing(Struct, frozen=True, gc=False):
    """What the headers of any reply say about the account."""

    rate: RateState
    credits_available: int


class StoredReply(Struct, frozen=True):
    """A whole reply and its credits, as the first request with its Idempotency-Key got them."""

    credits_consumed: int
    credits_remaining: int
    body: str


@dataclass(slots=True, eq=False)
class Meter:
    """What the client has been given so far, by whom, and how it ended. The relay writes it,
    the pipeline adds why a request ended badly; the settlement and the checkpoints read it."""

    status: Status = "failed"
    report: UsageReport | None = None
    """The upstream's last word on the usage."""
    reported_pieces: int = 0
    """How many pieces had been given when it was said."""
    output_pieces: int = 0
    """Deltas that carried output."""
    text_bytes: int = 0
    """Of a whole reply: what its output is counted by where the upstream reports no usage."""
    reasoning_pieces: int = 0
    """Those of the `output_pieces` that are reasoning and nothing else."""
    reasoning_bytes: int = 0
    """Those of the `text_bytes` that are reasoning."""
    finished: bool = False
    """A finish reason came."""
    first_output_at: float | None = None
    upstream: str | None = None
    upstream_id: str | None = None
    attempts: tuple[Attempt, ...] = ()
    error: RequestError | None = None


class Reply(Protocol):
    """Where the answer goes: the edge's connection, dressed by `api/replies.py`. Nothing here
    blocks or raises."""

    @property
    def begun(self) -> bool:
        """The head of a stream has been sent: what follows cannot be a status any more."""
        ...

    @property
    def gone(self) -> bool:
        """The client has left."""
        ...

    def on_pressure(self, listener: Callable[[bool], None]) -> None:
        """`listener(True)` when the client reads too slowly, `listener(False)` when it has caught
        up."""
        ...

    def begin(self, admission: Admission) -> None:
        """The head of a stream."""
        ...

    def write(self, events: bytes) -> None: ...

    def write_soon(self, events: bytes, sent: Callable[[], None]) -> None:
        """Together with what others write, before anything else happens to this reply. `sent` is
        called when it is written: never, where the client has left by then."""
        ...

    def flush(self) -> None:
        """What is to be written soon is written now."""
        ...

    def end_stream(self, settlement: Settlement, usage_event: bytes) -> None:
        """The credits and `[DONE]`. `usage_event` is empty for a client that did not ask for
        usage."""
        ...

    def break_stream(self, settlement: Settlement, error: RequestError) -> None:
        """After the first byte an error can only be an event; the body then ends without
        `[DONE]`."""
        ...

    def complete(self, admission: Admission, settlement: Settlement, body: bytes) -> None: ...

    def replay(self, request_id: str, reply: StoredReply, standing: Standing) -> None:
        """The reply that `request_id` got when the same Idempotency-Key was first used."""
        ...

    def refuse(
        self, call: Call, error: RequestError, standing: Standing | None, *, charged: int = 0
    ) -> None: ...
