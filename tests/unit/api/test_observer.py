import json
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from tests.support.api import MODEL, Api
from tests.support.builders import chat_bytes
from tests.support.clock import FixedClock

from tollway.api import observer
from tollway.api.observer import RequestObserver
from tollway.errors import (
    AuthenticationFailed,
    CreditsWhy,
    InsufficientCredits,
    RateLimit,
    RateLimited,
    RateWhy,
    RequestError,
    UpstreamFailed,
)
from tollway.gateway.types import Admission, Call, Caller, Cost
from tollway.ledger.base import Attempt, Hold, Outcome, Settlement
from tollway.metrics.counters import Metrics
from tollway.rates.base import CHAT, RateState
from tollway.wire.requests import parse_chat_request


class ToldReply:
    """Only what the observer asks of a reply."""

    def __init__(self, *, begun: bool = False, gone: bool = False) -> None:
        self.begun = begun
        self.gone = gone


def a_call(api: Api) -> Call:
    body = chat_bytes(model=MODEL, stream=True)
    now, began = api.clock.now(), api.clock.monotonic()
    return Call("req_1", now, began, "192.0.2.1", b"Bearer tw_x", body, client_request_id="mine")


def a_caller(api: Api) -> Caller:
    return Caller(api.account, api.tokens.authenticate(api.secret), CHAT + api.account.id)


def an_observer(api: Api) -> RequestObserver:
    return RequestObserver(api.metrics, api.access_log, api.clock)


def settle(
    api: Api,
    *,
    error: RequestError | None = None,
    reply: ToldReply | None = None,
    settlement: Settlement | None = None,
    by: RequestObserver | None = None,
    input_tokens_max: int = 10,
    **outcome: Any,
) -> None:
    call, caller, model = a_call(api), a_caller(api), api.model()
    hold = Hold("req_1", api.account.id, caller.token.id, model.price.id, 100, 0, call.now)
    cost = Cost(input_tokens_max, 3, 10, 1, 100)
    parsed = parse_chat_request(call.body)
    admission = Admission(call, caller, model, parsed, cost, hold, RateState(30, 29, 0.0), ())
    fields: dict[str, Any] = {
        "status": "completed",
        "model": MODEL,
        "input_tokens": 10,
        "output_tokens": 20,
        "source": "upstream",
        "cost": 30,
        "attempts": (Attempt("gpu-1", 200),),
        "upstream": "gpu-1",
        "client_request_id": "mine",
        "first_token_seconds": 0.18,
        "total_seconds": 0.94,
        **outcome,
    }
    told: Any = reply or ToldReply(begun=True)
    (by or an_observer(api)).settled(
        admission, Outcome(**fields), settlement or Settlement(30, 0, 70), error, told
    )


def looked_at(api: Api) -> None:
    """Somebody looks at the metrics."""
    api.metrics.catch_up()


async def lines(api: Api) -> list[dict[str, Any]]:
    await api.access_log.stop()
    return [json.loads(line) for line in api.access_path.read_text().splitlines()]


async def test_a_settled_request_gets_a_line_with_all_but_its_content(api: Api) -> None:
    settle(api)
    assert await lines(api) == [
        {
            "time": "2026-11-23T08:00:00Z",
            "request_id": "req_1",
            "kind": "chat_stream",
            "status": 200,
            "address": "192.0.2.1",
            "total_ms": 940.0,
            "account": api.account.id,
            "token": api.tokens.authenticate(api.secret).id,
            "model": MODEL,
            "ended": "completed",
            "input_tokens": 10,
            "output_tokens": 20,
            "source": "upstream",
            "credits": 30,
            "first_token_ms": 180.0,
            "upstream": "gpu-1",
            "client_request_id": "mine",
        }
    ]


async def test_a_settled_request_is_counted(api: Api) -> None:
    settle(api)
    looked_at(api)
    counts = api.metrics.of(MODEL)
    assert api.metrics.requests == {("chat_stream", MODEL, 200): 1}
    assert counts.ended == {"completed": 1, "interrupted": 0, "failed": 0}
    assert (counts.input_tokens, counts.output_tokens, counts.credits) == (10, 20, 30)
    assert (counts.shortfalls, counts.shortfall_credits, counts.counted) == (0, 0, 0)
    assert (counts.first_token.sum, counts.duration.sum) == (0.18, 0.94)
    assert api.metrics.upstream_attempts == {"gpu-1": 1}
    assert api.metrics.upstream_failures == {}


async def test_a_shortfall_and_usage_that_was_counted_are_marked(api: Api) -> None:
    settle(api, source="counted", settlement=Settlement(100, 40, 0))
    looked_at(api)
    counts = api.metrics.of(MODEL)
    assert (counts.shortfalls, counts.shortfall_credits, counts.counted) == (1, 40, 1)
    assert (await lines(api))[0]["shortfall"] == 40


async def test_a_request_that_used_nothing_is_not_marked_as_counted(api: Api) -> None:
    settle(api, source="counted", input_tokens=0, output_tokens=0)
    looked_at(api)
    assert api.metrics.of(MODEL).counted == 0


async def test_an_upstreams_failure_is_counted_by_its_code(api: Api) -> None:
    attempts = (Attempt("gpu-1", 500, "upstream_error"), Attempt("gpu-2", 200))
    settle(api, attempts=attempts)
    looked_at(api)
    assert api.metrics.upstream_attempts == {"gpu-1": 1, "gpu-2": 1}
    assert api.metrics.upstream_failures == {("gpu-1", "upstream_error"): 1}


@pytest.mark.parametrize(
    ("reply", "error", "status"),
    [
        (ToldReply(), None, 200),
        (ToldReply(begun=True), UpstreamFailed("It broke."), 200),
        (ToldReply(begun=True, gone=True), None, 200),
        (ToldReply(), UpstreamFailed("It broke."), 502),
        (ToldReply(gone=True), UpstreamFailed("It broke."), 499),
        (ToldReply(gone=True), None, 499),
    ],
)
async def test_the_status_is_what_the_client_was_told(
    api: Api, reply: ToldReply, error: RequestError | None, status: int
) -> None:
    settle(api, error=error, reply=reply)
    line = (await lines(api))[0]
    assert line["status"] == status
    assert line.get("error") == (None if error is None else "upstream_error")


async def test_many_requests_and_large_ones_are_told_without_being_asked_for(api: Api) -> None:
    one = an_observer(api)
    for _ in range(observer.UNTOLD_MAX - 1):
        settle(api, by=one)
    assert api.metrics.requests == {}
    settle(api, by=one)
    assert api.metrics.requests == {("chat_stream", MODEL, 200): observer.UNTOLD_MAX}

    settle(api, by=one, input_tokens_max=observer.INPUT_TOKENS_KEPT_MAX + 1)
    assert api.metrics.requests == {("chat_stream", MODEL, 200): observer.UNTOLD_MAX + 1}


async def test_a_refusal_is_counted_by_its_code_and_costs_nothing(api: Api) -> None:
    why = CreditsWhy("balance", 1, 0, 1)
    error = InsufficientCredits("No.", required=5, affordable_output_tokens=None, why=why)
    an_observer(api).refused(a_call(api), a_caller(api), error)
    line = (await lines(api))[0]
    assert (line["status"], line["error"]) == (402, "insufficient_credits")
    assert "credits" not in line
    assert api.metrics.refusals == {"insufficient_credits": 1}
    assert api.metrics.requests == {("chat", "", 402): 1}


async def test_refusals_of_limits_are_told_apart(api: Api) -> None:
    refuser, call, caller = an_observer(api), a_call(api), a_caller(api)
    limits = get_args(RateLimit)
    by_address = limits.index("failed_authentications_per_minute")
    for number, limit in enumerate(limits):
        of = None if number == by_address else caller
        refuser.refused(call, of, RateLimited("No.", RateWhy(limit, 1, 1.0)))
    refuser.refused(call, None, AuthenticationFailed("No."))
    assert api.metrics.rate_refusals == dict.fromkeys(limits, 1)
    assert api.metrics.authentication_failures == 2


async def test_every_other_route_gets_its_line(api: Api) -> None:
    reply = await api.ask("GET", "/v1/models", api.secret, x_request_id="mine-2")
    refused = await api.get("/v1/nothing", api.secret)
    told, unknown = await lines(api)
    assert told["request_id"] == reply.header("x-request-id")
    assert (told["kind"], told["status"], told["client_request_id"]) == ("models", 200, "mine-2")
    assert told["account"] == api.account.id
    assert unknown["request_id"] == refused.header("x-request-id")
    assert (unknown["kind"], unknown["status"], unknown["error"]) == ("none", 404, "not_found")


async def test_no_line_has_content_or_a_secret(api: Api) -> None:
    settle(api)
    await api.post("/v1/auth/pat", api.secret, {"name": "n", "scopes": ["llm-all"]})
    await api.get("/v1/models?q=tw_secret", "tw_secret")
    await lines(api)
    text = api.access_path.read_text()
    assert "Tay Bridge" not in text
    assert "tw_" not in text


def test_what_is_told_together_adds_up_for_each_account_second_and_model() -> None:
    metrics, nothing = Metrics(), SimpleNamespace
    log: Any = nothing(enabled=False, before_writing=[])
    observer = RequestObserver(metrics, log, FixedClock())
    told: tuple[tuple[str, float, str, int], ...] = (
        ("a", 100.2, MODEL, 1),
        ("a", 100.9, MODEL, 2),
        ("b", 100.9, "n", 4),
        ("a", 130.0, "n", 8),
        ("a", 129.9, MODEL, 16),  # a little out of order
        ("b", 131.0, MODEL, 0),
        ("b", 131.0, MODEL, 32),
        ("b", 195.0, MODEL, 64),
    )
    for account, began, model, charged in told:
        admission: Any = nothing(
            parsed=nothing(request=nothing(stream=False), images=()),
            call=nothing(began=began),
            caller=nothing(account=nothing(id=account)),
            cost=nothing(input_tokens_max=1),
        )
        outcome = Outcome("completed", model, 1, 1, "upstream", charged, ())
        reply: Any = ToldReply(begun=True)
        observer.settled(admission, outcome, Settlement(charged, 0, 0), None, reply)
        if charged == 32:
            metrics.catch_up()
            assert metrics.velocity.last_minute(131.0) == (63, 36)
            assert metrics.velocity.last_minute(161.5) == (56, 32)
    metrics.catch_up()
    assert metrics.velocity.last_minute(195.0) == (64, 64)
    assert (metrics.models[MODEL].credits, metrics.models["n"].credits) == (115, 12)


def test_charges_of_one_account_more_than_a_minute_apart_are_not_one() -> None:
    metrics, nothing = Metrics(), SimpleNamespace
    log: Any = nothing(enabled=False, before_writing=[])
    observer = RequestObserver(metrics, log, FixedClock())
    for began in (100.0, 170.0):
        admission: Any = nothing(
            parsed=nothing(request=nothing(stream=False), images=()),
            call=nothing(began=began),
            caller=nothing(account=nothing(id="a")),
            cost=nothing(input_tokens_max=1),
        )
        reply: Any = ToldReply(begun=True)
        outcome = Outcome("completed", MODEL, 1, 1, "upstream", 1, ())
        observer.settled(admission, outcome, Settlement(1, 0, 0), None, reply)
    metrics.catch_up()
    assert metrics.velocity.last_minute(170.0) == (1, 1)
