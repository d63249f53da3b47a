"""What the stages hand on, with plausible values: a test names what matters to it."""

from collections.abc import Callable
from typing import Any

from tests.support.builders import chat_bytes
from tests.support.clock import FixedClock

from tollway.accounts import Account
from tollway.catalogue import Model, Price, Serving
from tollway.errors import RequestError
from tollway.gateway.route import Router
from tollway.gateway.types import Admission, Call, Caller, Cost, Meter, Standing, StoredReply
from tollway.ledger.base import Hold, Settlement
from tollway.rates.base import CHAT, RateState
from tollway.tokens import Token
from tollway.upstreams.base import Upstream
from tollway.upstreams.health import Health
from tollway.upstreams.places import Places
from tollway.upstreams.watched import Watched
from tollway.wire.requests import parse_chat_request

NOW = 1_795_420_800.0
REQUEST_ID = "req_" + "1" * 32
PRICE = Price("price_1", 1_000_000, 2_000_000)  # one credit a token in, two a token out


def a_model(**changes: Any) -> Model:
    values: dict[str, Any] = {
        "id": "m1",
        "name": "m1",
        "tier": "budget",
        "price": PRICE,
        "context_length": 10_000,
        "max_output_tokens": 1000,
        "default_max_tokens": 500,
        "supported_parameters": None,
        "confidential": False,
        "servings": (Serving("gpu-1", "parrot"),),
        "created_at": NOW,
        "owned_by": "tollway",
    }
    values |= changes
    return Model(price_max=values["price"].dearest(), **values)


def a_caller(
    *,
    requests_per_minute: int | None = None,
    concurrent_requests: int | None = None,
    token_requests_per_minute: int | None = None,
    models: frozenset[str] | None = None,
    spend_cap: int | None = None,
    strict: bool = False,
    scopes: frozenset[str] = frozenset({"llm-all"}),
) -> Caller:
    account = Account("acc_1", "acme", "active", requests_per_minute, concurrent_requests, NOW)
    token = Token(
        id="tok_1",
        account_id=account.id,
        name="t",
        scopes=scopes,
        models=models,
        requests_per_minute=token_requests_per_minute,
        spend_cap=spend_cap,
        strict=strict,
        created_at=NOW,
        expires_at=None,
        revoked_at=None,
    )
    return Caller(account, token, CHAT + account.id)


def a_call(body: bytes = b"", **changes: Any) -> Call:
    values: dict[str, Any] = {
        "request_id": REQUEST_ID,
        "now": NOW,
        "began": 1000.0,
        "address": "127.0.0.1",
        "authorization": None,
        "body": body,
    }
    return Call(**(values | changes))


def an_admission(
    *,
    hold: int = 10_000,
    counted: int | None = None,
    output_tokens_max: int = 500,
    model: Model | None = None,
    **fields: object,
) -> Admission:
    body = chat_bytes(**fields)
    parsed = parse_chat_request(body)
    choices = parsed.request.n or 1
    text_bytes = len("Why did the Tay Bridge fall?")
    bound = 256 + 16 + text_bytes if counted is None else counted
    assumed = -(-text_bytes // 4) if counted is None else counted
    return Admission(
        a_call(body),
        a_caller(),
        model or a_model(),
        parsed,
        Cost(bound, assumed, output_tokens_max, choices, hold),
        Hold(REQUEST_ID, "acc_1", "tok_1", PRICE.id, hold, 90_000, NOW),
        RateState(30, 29, 0.0),
        (),
    )


def a_meter(**values: Any) -> Meter:
    meter = Meter()
    for name, value in values.items():
        setattr(meter, name, value)
    return meter


def a_router(
    *upstreams: Upstream,
    clock: FixedClock | None = None,
    circuit_failures: int = 5,
    **places: Any,
) -> Router:
    """`places` are the arguments of each upstream's `Places`."""
    clock = clock or FixedClock()
    watched = {
        upstream.name: Watched(
            upstream,
            Health(upstream.name, clock.monotonic, lambda: 0.5, circuit_failures),
            Places(**places),
        )
        for upstream in upstreams
    }
    return Router(watched, clock, lambda: 0.5)


class ReplyLog:
    """A `Reply` that keeps what it was given."""

    def __init__(self) -> None:
        self.begun = False
        self.gone = False
        self.written = b""
        self.body: bytes | None = None
        self.usage_event: bytes | None = None
        self.error: RequestError | None = None
        self.listener: Callable[[bool], None] = lambda _: None

    def on_pressure(self, listener: Callable[[bool], None]) -> None:
        self.listener = listener

    def begin(self, admission: Admission) -> None:
        assert not self.begun
        self.begun = True

    def write(self, events: bytes) -> None:
        assert self.begun
        assert events
        self.written += events

    def write_soon(self, events: bytes, sent: Callable[[], None]) -> None:
        self.write(events)
        sent()

    def flush(self) -> None:
        pass

    def end_stream(self, settlement: Settlement, usage_event: bytes) -> None:
        self.usage_event = usage_event

    def break_stream(self, settlement: Settlement, error: RequestError) -> None:
        self.error = error

    def complete(self, admission: Admission, settlement: Settlement, body: bytes) -> None:
        self.body = body

    def replay(self, request_id: str, reply: StoredReply, standing: Standing) -> None:
        raise AssertionError("nothing here has an Idempotency-Key")

    def refuse(
        self, call: Call, error: RequestError, standing: Standing | None, *, charged: int = 0
    ) -> None:
        self.error = error
