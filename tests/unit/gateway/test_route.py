"""One request's way through several upstreams: which is asked, and when another is."""

import asyncio
from collections.abc import Iterator

import pytest
from tests.support.clock import FixedClock
from tests.unit.gateway.desk import END, EVENT, Desk, Gated, Upstream, failing, settle_down
from tests.unit.gateway.parts import ReplyLog, a_model, a_router

from tollway.catalogue import Serving
from tollway.deadlines import Deadlines
from tollway.errors import (
    InvalidRequest,
    RequestError,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from tollway.gateway import route as route_module
from tollway.gateway.relay import Silences, relay
from tollway.gateway.types import Meter
from tollway.ledger.base import Attempt, Hold, Outcome
from tollway.upstreams.base import Ask, EventSink
from tollway.upstreams.watched import Watched
from tollway.wire.chat import ChatCompletion

pytestmark = pytest.mark.usefixtures("no_waiting")


def an_outcome_at(upstream: str) -> Outcome:
    return Outcome(
        status="completed",
        model="m1",
        input_tokens=9,
        output_tokens=9,
        source="upstream",
        cost=9,
        attempts=(),
        upstream=upstream,
        upstream_id=None,
        client_request_id=None,
        first_token_seconds=None,
        total_seconds=1.0,
    )


def a_hold(amount: int) -> Hold:
    return Hold("req_1", "acc_1", "tok_1", "price_1", amount, 0, 0.0)


# --- another upstream -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "error",
    [
        failing(was_sent=False, kind=Unavailable),
        failing(kind=UpstreamTimeout),
        failing(),
        *(failing(status) for status in (401, 402, 403, 404, 408, 418, 429, 500, 502, 503, 504)),
        failing(429, rest_seconds=7),
        failing(200),
    ],
    ids=str,
)
async def test_another_upstream_is_asked_where_one_fails_before_its_first_byte(
    error: RequestError, stream: bool
) -> None:
    desk = Desk(Upstream("gpu-1", error), Upstream("gpu-2"))

    assert await desk.ask(stream=stream) is None

    assert list(desk.meter.attempts) == [
        Attempt("gpu-1", error.upstream_status, error.code),
        Attempt("gpu-2", 200),
    ]
    assert desk.meter.upstream == "gpu-2"
    assert desk.in_flight == [0, 0]


class Timed(Upstream):
    """Its answer begins after two seconds; a stream goes on for five more."""

    def begin_in(self, clock: FixedClock) -> None:
        self.clock = clock

    async def complete(self, ask: Ask) -> ChatCompletion:
        self.clock.advance(2)
        return await super().complete(ask)

    async def stream(self, ask: Ask, sink: EventSink) -> None:
        self.clock.advance(2)
        self.script = [self._events()]
        await super().stream(ask, sink)

    def _events(self) -> Iterator[bytes]:
        yield EVENT
        self.clock.advance(5)
        yield END


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_upstreams_latency_is_how_long_the_beginning_of_its_answers_takes(
    stream: bool,
) -> None:
    upstream = Timed("gpu-1")
    desk = Desk(upstream)
    upstream.begin_in(desk.clock)
    await desk.ask(stream=stream)
    assert desk.watched["gpu-1"].latency[stream] == 2
    assert desk.watched["gpu-1"].latency[not stream] == 0


async def test_each_attempt_has_the_requests_id_and_the_upstreams_own_name_of_the_model() -> None:
    desk = Desk(Upstream("gpu-1", failing(502)), Upstream("gpu-2"))
    await desk.ask()
    first, second = desk.upstreams[0].asks[0], desk.upstreams[1].asks[0]
    assert first.request_id == second.request_id == desk.admission().call.request_id
    assert (first.model, second.model) == ("gpu-1s-name", "gpu-2s-name")


async def test_a_request_that_is_wrong_is_not_tried_elsewhere() -> None:
    desk = Desk(Upstream("gpu-1", failing(400, kind=InvalidRequest)), Upstream("gpu-2"))
    assert isinstance(await desk.ask(), InvalidRequest)
    assert desk.attempts == [("gpu-1", 400)]


async def test_there_are_at_most_three_tries() -> None:
    desk = Desk(*(Upstream(f"gpu-{n}", failing(502)) for n in range(5)))
    assert isinstance(await desk.ask(), UpstreamFailed)
    assert len(desk.meter.attempts) == 3
    assert len({upstream for upstream, _ in desk.attempts}) == 3
    assert desk.in_flight == [0] * 5


async def test_a_stream_whose_client_has_something_of_it_is_not_tried_elsewhere() -> None:
    desk = Desk(Upstream("gpu-1", [EVENT]), Upstream("gpu-2"))
    assert isinstance(await desk.ask(stream=True), UpstreamFailed)
    assert desk.attempts == [("gpu-1", 200)]
    assert desk.reply.written.count(b'"content":"Hi"') == 1


@pytest.mark.parametrize(
    "events",
    [
        [],
        [b"no JSON"],
        [b'{"error":{"message":"The engine died."}}'],
        [b'{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}'],
        [b'{"id":"c","choices":[{"index":7,"delta":{"content":"Hi"}}]}'],
    ],
    ids=["nothing", "rubbish", "error event", "abort", "wrong choice"],
)
async def test_a_stream_that_was_accepted_and_brought_nothing_is_tried_elsewhere(
    events: list[bytes],
) -> None:
    desk = Desk(Upstream("gpu-1", events), Upstream("gpu-2"))
    assert await desk.ask(stream=True) is None
    assert desk.attempts == [("gpu-1", 200), ("gpu-2", 200)]
    assert desk.reply.written.count(b'"content":"Hi"') == 1
    assert desk.meter.upstream_id == "c"
    assert desk.meter.output_pieces == 1


async def test_a_comment_that_kept_the_connection_is_no_part_of_an_answer() -> None:
    desk = Desk(Upstream("gpu-1", failing(kind=UpstreamTimeout)), Upstream("gpu-2"))
    admission = desk.admission(stream=True)
    desk.reply.begin(admission)
    desk.reply.write(b": keep-alive\n\n")
    await relay(desk.router.route(admission), admission, desk.reply, desk.meter, Silences())
    assert desk.attempts == [("gpu-1", None), ("gpu-2", 200)]


async def test_without_budget_a_failed_request_is_not_tried_again() -> None:
    desk = Desk(Upstream("gpu-1"), Upstream("gpu-2"), circuit_failures=0)
    first, second = desk.upstreams
    tries = 0
    for _ in range(100):
        first.script = [failing(500)]
        second.script = [failing(500)]
        await desk.ask()
        desk.clock.advance(0.01)
        tries += len(desk.meter.attempts) - 1
    assert tries <= 20 + 10 + 3
    assert dict(desk.router.tries_refused())["m1"] > 50


def use_up_the_budget(desk: Desk) -> None:
    budget = desk.router.route(desk.admission())._upstreams.budget  # pyright: ignore[reportPrivateUsage]
    while budget.withdraw():
        pass


async def test_a_request_that_could_not_be_tried_again_is_not_risked_on_a_flaky_upstream() -> None:
    gated = Gated("gpu-1", "gpu-2", limit=1)
    desk = gated.desk
    gated.upstreams[0].script = [failing(500)]
    await gated.start()
    gated.open(0)
    await settle_down()
    assert desk.in_flight == [0, 1]  # gpu-1 has failed, and gpu-2 has taken over
    use_up_the_budget(desk)

    await gated.start()

    assert desk.in_flight == [0, 1]
    assert desk.watched["gpu-2"].places.waiting == 1
    gated.open(1)
    assert await gated.results() == ["gpu-2", "gpu-2"]


async def test_better_at_a_risk_than_not_at_all() -> None:
    gated = Gated("gpu-1", "gpu-2", limit=1, queue_seconds=0.01)
    gated.upstreams[0].script = [failing(500)]
    await gated.start()
    gated.open(0)
    await settle_down()
    use_up_the_budget(gated.desk)
    await gated.start()
    assert await gated.tasks[1] == "gpu-1"
    gated.open(1)
    await gated.results()


async def test_what_was_never_sent_costs_no_budget() -> None:
    desk = Desk(Upstream("gpu-1"), Upstream("gpu-2"))
    for _ in range(200):
        desk.upstreams[0].script = [failing(was_sent=False, kind=Unavailable)]
        assert await desk.ask() is None
    assert dict(desk.router.tries_refused()) == {"m1": 0}


# --- the same upstream again ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        failing(was_sent=False, kind=Unavailable),
        failing(),
        failing(502),
        failing(503),
    ],
    ids=str,
)
async def test_the_only_upstream_is_asked_again_where_its_trouble_may_be_that_of_a_moment(
    error: RequestError,
) -> None:
    desk = Desk(Upstream("gpu-1", error, error))
    assert await desk.ask() is None
    assert len(desk.meter.attempts) == 3


@pytest.mark.parametrize(
    "error",
    [
        failing(kind=UpstreamTimeout),
        failing(504, kind=UpstreamTimeout),
        failing(200),
        failing(500),
        failing(401),
        failing(429),
        failing(429, rest_seconds=7),
        failing(503, rest_seconds=7),
        Unavailable("Its own queue is full.", code="overloaded"),
    ],
    ids=str,
)
async def test_the_only_upstream_is_not_asked_again_where_that_cannot_help(
    error: RequestError,
) -> None:
    desk = Desk(Upstream("gpu-1", error))
    assert await desk.ask() is error
    assert len(desk.meter.attempts) == 1


async def test_it_waits_before_it_asks_the_same_one_again_and_not_before_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(route_module, "BACKOFF_SECONDS", 0.1)
    monkeypatch.setattr(route_module.asyncio, "sleep", sleep)
    await Desk(Upstream("gpu-1", failing(502)), Upstream("gpu-2")).ask()
    assert waits == []

    await Desk(Upstream("gpu-1", failing(502), failing(502))).ask()

    assert 0.05 <= waits[0] <= 0.15
    assert 0.1 <= waits[1] <= 0.3


# --- priority -------------------------------------------------------------------------------------


async def test_the_next_priority_is_asked_only_where_the_first_cannot_serve() -> None:
    desk = Desk(Upstream("spare"), Upstream("gpu-1"), Upstream("gpu-2"), priorities=(1, 0, 0))
    for _ in range(10):
        await desk.ask()
        assert desk.meter.upstream != "spare"

    for upstream in desk.upstreams[1:]:
        upstream.runs = False
    await desk.ask()
    assert desk.attempts == [("spare", 200)]


async def test_a_failing_first_priority_is_tried_out_before_the_next() -> None:
    desk = Desk(
        Upstream("spare"),
        Upstream("gpu-1", failing(502)),
        Upstream("gpu-2", failing(502)),
        priorities=(1, 0, 0),
    )
    await desk.ask()
    assert [upstream for upstream, _ in desk.attempts] == ["gpu-1", "gpu-2", "spare"]


# --- what speaks against one ----------------------------------------------------------------------


async def test_one_that_asked_for_rest_gets_it() -> None:
    desk = Desk(Upstream("gpu-1", failing(429, rest_seconds=7)), Upstream("gpu-2"))
    await desk.ask()
    for _ in range(5):
        desk.clock.advance(1)
        await desk.ask()
        assert desk.attempts == [("gpu-2", 200)]
    desk.clock.advance(20)
    desk.upstreams[1].runs = False
    await desk.ask()
    assert desk.attempts == [("gpu-1", 200)]


async def test_where_none_may_be_asked_the_client_is_told_when() -> None:
    desk = Desk(
        Upstream("gpu-1", failing(429, rest_seconds=30)),
        Upstream("gpu-2", failing(429, rest_seconds=12)),
    )
    await desk.ask()
    error = await desk.ask()
    assert isinstance(error, Unavailable)
    assert (error.code, error.retry_after_seconds) == ("overloaded", pytest.approx(12))
    assert "None of the model's 2 servers" in error.message
    assert desk.attempts == []
    with pytest.raises(Unavailable):
        desk.router.count_input_tokens(desk.model, desk.admission().parsed, 5)


async def test_one_that_failed_too_often_is_unavailable_and_not_busy() -> None:
    desk = Desk(Upstream("gpu-1"))
    for _ in range(5):
        desk.watched["gpu-1"].health.failed(failing())
    error = await desk.ask()
    assert isinstance(error, Unavailable)
    assert (error.code, error.retry_after_seconds) == ("unavailable", 1.0)
    assert "because it failed 5 times in a row" in error.message


async def test_a_failing_probe_is_made_good_by_another_upstream() -> None:
    desk = Desk(Upstream("gpu-1"), Upstream("gpu-2"))
    desk.upstreams[0].script = [failing() for _ in range(6)]
    for _ in range(5):
        desk.watched["gpu-1"].health.failed(failing())
    desk.clock.advance(1.5)
    assert await desk.ask() is None
    assert desk.attempts == [("gpu-1", None), ("gpu-2", 200)]
    assert await desk.ask() is None
    assert desk.attempts == [("gpu-2", 200)]


async def test_a_probe_that_was_answered_is_none_any_more() -> None:
    desk = Desk(Upstream("gpu-1"), circuit_failures=1)
    health = desk.watched["gpu-1"].health
    first, second = (desk.router.route(desk.admission()) for _ in range(2))
    health.failed(failing())
    desk.clock.advance(60)
    assert first.enter() is not None
    first.answered()
    health.failed(failing())
    desk.clock.advance(60)
    assert second.enter() is not None
    first.abandoned()
    assert not health.may_be_asked()
    second.abandoned()
    assert health.may_be_asked()


async def test_a_cancelled_request_gives_its_place_and_its_probe_back() -> None:
    upstream = Upstream("gpu-1")
    upstream.gate = asyncio.Event()
    desk = Desk(upstream)
    for _ in range(5):
        desk.watched["gpu-1"].health.failed(failing())
    desk.clock.advance(1.5)
    task = asyncio.create_task(desk.ask())
    await asyncio.sleep(0)
    assert desk.in_flight == [1]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert desk.in_flight == [0]
    assert desk.watched["gpu-1"].health.may_be_asked()


async def test_a_report_beyond_the_cap_counts_against_the_upstream_that_gave_it() -> None:
    desk = Desk(Upstream("gpu-1"), Upstream("gpu-2"))
    outcome = an_outcome_at("gpu-2")
    for _ in range(3):
        desk.router.settled(outcome, a_hold(9))
    assert [one.may_be_asked() for one in desk.router.upstreams()] == [True, True]

    for _ in range(3):
        desk.router.settled(outcome, a_hold(5))
    assert [one.may_be_asked() for one in desk.router.upstreams()] == [True, False]


def test_what_is_not_ready_is_named_only_where_a_model_has_none_left() -> None:
    desk = Desk(Upstream("gpu-1"), Upstream("gpu-2"))
    desk.upstreams[0].runs = False
    assert desk.router.not_ready([desk.model]) == []
    for _ in range(3):
        desk.watched["gpu-2"].health.reported(5)
    assert desk.router.not_ready([desk.model]) == [
        "model m1: upstream gpu-1 is not ready, it does not run; upstream gpu-2 is not ready, it "
        "reported more than it was allowed to use"
    ]


async def test_only_a_model_with_one_upstream_has_its_input_counted_by_it() -> None:
    """Another upstream may count more than the one that was asked, and the hold is a promise."""
    lone = Desk(Upstream("gpu-1", counted=5))
    both = Desk(Upstream("gpu-1", counted=5), Upstream("gpu-2", counted=7))
    parsed = lone.admission().parsed
    counting = lone.router.count_input_tokens(lone.model, parsed, 10)
    assert counting is not None
    assert await counting == 5
    assert both.router.count_input_tokens(both.model, parsed, 10) is None


# --- deadlines ------------------------------------------------------------------------------------


async def test_the_models_own_deadlines_go_before_the_upstreams() -> None:
    own = Deadlines(1, 2, 3, 4)
    desk = Desk(Upstream("gpu-1"), deadlines=own)
    await desk.ask()
    assert desk.upstreams[0].asks[0].deadlines == own
    desk = Desk(Upstream("gpu-1"))
    await desk.ask()
    assert desk.upstreams[0].asks[0].deadlines == Deadlines()


async def test_the_total_is_over_all_tries() -> None:
    class Slow(Upstream):
        async def complete(self, ask: Ask) -> ChatCompletion:
            desk.clock.advance(40)
            return await super().complete(ask)

    desk = Desk(
        *(Slow(f"gpu-{n}", failing(kind=UpstreamTimeout)) for n in range(4)),
        deadlines=Deadlines(total_seconds=75),
    )
    assert isinstance(await desk.ask(), UpstreamTimeout)
    asks = [ask for upstream in desk.upstreams for ask in upstream.asks]
    assert [ask.deadlines.total_seconds for ask in asks if ask.deadlines] == [75, 35]
    assert len(desk.meter.attempts) == 2


# --- others in their place ------------------------------------------------------------------------


def watched_of(*upstreams: Upstream) -> dict[str, Watched]:
    return {one.name: one for one in a_router(*upstreams).upstreams()}


async def test_a_request_that_was_admitted_before_a_reload_finds_the_upstreams_it_began_with() -> (
    None
):
    desk = Desk(Upstream("gpu-1"), Upstream("gpu-2"))
    await desk.ask()
    admission = desk.admission()
    new = Upstream("gpu-3")
    desk.router.put(
        watched_of(new), [a_model(servings=(Serving("gpu-3", "other"),), context_length=5)]
    )

    await relay(desk.router.route(admission), admission, ReplyLog(), Meter(), Silences())

    assert new.asks == []
    assert sum(len(upstream.asks) for upstream in desk.upstreams) == 2
    desk.router.settled(an_outcome_at("gpu-1"), a_hold(5))


async def test_what_a_reload_leaves_as_it_is_keeps_its_budget_and_its_record() -> None:
    desk = Desk(Upstream("gpu-1", failing(502)), Upstream("gpu-2"))
    await desk.ask()
    before = desk.router._upstreams_of(desk.model)  # pyright: ignore[reportPrivateUsage]

    desk.router.put({**desk.watched, "gpu-3": watched_of(Upstream("gpu-3"))["gpu-3"]}, [desk.model])
    assert desk.router._upstreams_of(desk.model) is before  # pyright: ignore[reportPrivateUsage]

    desk.router.put(watched_of(Upstream("gpu-1"), Upstream("gpu-2")), [desk.model])
    assert desk.router._upstreams_of(desk.model) is not before  # pyright: ignore[reportPrivateUsage]


async def test_a_model_whose_upstreams_are_all_gone_is_unavailable() -> None:
    """It takes two reloads within one request's admission to come to that."""
    desk = Desk(Upstream("gpu-1"), Upstream("gpu-2"))
    for name in ("gpu-3", "gpu-4"):
        servings = (Serving(name, "m"),)
        desk.router.put(watched_of(Upstream(name)), [a_model(servings=servings)])

    assert isinstance(await desk.ask(), Unavailable)
