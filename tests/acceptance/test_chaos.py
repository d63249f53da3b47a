"""Two of three upstreams misbehave in every way, under continuous load: nobody who asks notices,
nobody is charged twice, and the one that is well runs no more than it may.

What each upstream says that it sent is the oracle; the proxies in front of the two are the chaos.
"""

import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.conftest import assert_ledger_is_whole
from tests.support.answers import error_event, openai_error, raw, reply, stream
from tests.support.builders import message
from tests.support.customer import Customer, a_customer, eventually
from tests.support.fake_upstream import Exchange, FakeUpstream
from tests.support.fault_proxy import (
    BLACK_HOLE,
    CORRUPT,
    CUT,
    DELAY,
    NONE,
    REFUSE,
    RESET,
    SLICE,
    Fault,
    FaultProxy,
)
from tests.support.http import Reply
from tests.support.server import TollwayServer

SECONDS = 15.0
CLIENTS = 12
CONCURRENT = 6  # of the healthy one: fewer than there are clients
CHUNKS = 5

CONFIG = """
[limits]
requests_per_minute = 1000000
other_requests_per_minute = 1000000
concurrent_requests = 1000

[tiers.parrot]
prompt_rate = 1000000
completion_rate = 2000000

[[upstreams]]
name = "healthy"
base_url = "{healthy}"
concurrent_requests = {concurrent}
queue_length = 100
queue_seconds = 60

[[upstreams]]
name = "bad-1"
base_url = "{first}"
connect_seconds = 0.5
first_byte_seconds = 0.5
between_chunks_seconds = 0.5
circuit_failures = {circuit_failures}

[[upstreams]]
name = "bad-2"
base_url = "{second}"
connect_seconds = 0.5
first_byte_seconds = 0.5
between_chunks_seconds = 0.5
circuit_failures = {circuit_failures}

[[models]]
id = "acme/parrot"
tier = "parrot"
context_length = 100000
default_max_tokens = 100
upstreams = [{{ name = "healthy" }}, {{ name = "bad-1" }}, {{ name = "bad-2" }}]
"""

# Of the way back: within the head, at the end of the head, within the first event, within others.
BYTES = (0, 5, 90, 150, 260, 420, 700, 1100)
WIRE_FAULTS: list[Fault] = [
    *(kind.at(byte) for kind in (CUT, RESET, BLACK_HOLE, CORRUPT) for byte in BYTES),
    DELAY,
    DELAY.at(300),
    SLICE,
    REFUSE,
]

ANSWERS: dict[str, Callable[[Exchange], Any]] = {
    "401": lambda _: openai_error(401, "No."),
    "404": lambda _: openai_error(404, "No."),
    "429": lambda _: openai_error(429, "Slow down."),
    "429 with a wait": lambda _: openai_error(429, "Slow down.", ("Retry-After", "1")),
    "500": lambda _: openai_error(500, "No."),
    "502": lambda _: openai_error(502, "No."),
    "503": lambda _: openai_error(503, "No."),
    "504": lambda _: openai_error(504, "No."),
    "not HTTP": lambda _: raw(b"SSH-2.0-OpenSSH\r\n"),
    "error event": lambda exchange: (
        stream([error_event()], role=False, finish_reason=None, done=False, usage=None)
        if exchange.asked.streamed
        else openai_error(500, "No.")
    ),
    "an empty answer": lambda exchange: (
        stream([], role=False, finish_reason=None, done=False, usage=None)
        if exchange.asked.streamed
        else reply("a", extra={"choices": []})
    ),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a client and what it got."""

    streamed: bool
    reply: Reply

    @property
    def request_id(self) -> str:
        return str(self.reply.header("X-Request-Id"))

    @property
    def deltas(self) -> int:
        return sum(
            bool(choice["delta"].get("content"))
            for event in self.reply.events
            if event.data is not None and event.data.startswith("{")
            for choice in json.loads(event.data).get("choices", ())
        )

    @property
    def ended_well(self) -> bool:
        return not self.streamed or b"data: [DONE]" in self.reply.body


class House:
    def __init__(
        self,
        server: TollwayServer,
        upstreams: dict[str, FakeUpstream],
        proxies: list[FaultProxy],
        *,
        circuits: bool,
    ) -> None:
        self.server = server
        self.circuits = circuits
        self.upstreams = upstreams
        self.proxies = proxies

    def listed(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self.server.operate("upstream list")["data"]}

    def exchanges(self) -> dict[str, list[tuple[str, Exchange]]]:
        """By request id: where it was asked, and what was sent there."""
        found: dict[str, list[tuple[str, Exchange]]] = {}
        for name, upstream in self.upstreams.items():
            for exchange in upstream.exchanges:
                found.setdefault(str(exchange.header("x-request-id")), []).append((name, exchange))
        return found


@pytest.fixture(scope="module", params=[5, 0], ids=["circuits", "no circuits"])
def house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """Circuits keep the two away most of the time; without them each fault is met again and
    again."""
    with (
        FakeUpstream() as healthy,
        FakeUpstream() as first,
        FakeUpstream() as second,
        FaultProxy(first.port) as proxy_1,
        FaultProxy(second.port) as proxy_2,
    ):
        config = CONFIG.format(
            healthy=healthy.base_url,
            first=proxy_1.base_url,
            second=proxy_2.base_url,
            concurrent=CONCURRENT,
            circuit_failures=request.param,
        )
        data_dir: Path = tmp_path_factory.mktemp("tollway") / "data"
        with TollwayServer(data_dir, config) as server:
            upstreams = {"healthy": healthy, "bad-1": first, "bad-2": second}
            yield House(server, upstreams, [proxy_1, proxy_2], circuits=request.param > 0)
            assert_ledger_is_whole(server)


def misbehave(house: House, stop: threading.Event, seed: int) -> Counter[str]:
    """Each of the two gets another fault every now and then, of the wire or of the server, and now
    and then none."""
    dice = random.Random(seed)
    played: Counter[str] = Counter()
    wire = itertools.cycle(dice.sample(WIRE_FAULTS, len(WIRE_FAULTS)))
    answers = itertools.cycle(dice.sample(sorted(ANSWERS), len(ANSWERS)))
    bad = [house.upstreams["bad-1"], house.upstreams["bad-2"]]
    while not stop.wait(0.15):
        index = dice.randrange(2)
        bad[index].forget_answers()
        house.proxies[index].behave()
        match dice.randrange(5):
            case 0:
                played["none"] += 1
            case 1:
                name = next(answers)
                bad[index].answer_with(ANSWERS[name])
                played[name] += 1
            case _:
                fault = next(wire)
                house.proxies[index].misbehave(fault)
                played[fault.kind] += 1
    for index in range(2):
        bad[index].forget_answers()
        house.proxies[index].misbehave(NONE)
    return played


def keep_asking(customer: Customer, until: float, seed: int) -> list[Asked]:
    dice = random.Random(seed)
    asked: list[Asked] = []
    while time.monotonic() < until:
        streamed = dice.random() < 0.5
        directives = {"chunks": CHUNKS, "pace_ms": dice.choice((0, 1, 10)), "input_tokens": 9}
        answered = customer.chat(
            stream=streamed, messages=[message("Hello!")], user=json.dumps(directives)
        )
        asked.append(Asked(streamed, answered))
    return asked


def most_at_a_time(exchanges: list[Exchange]) -> int:
    """Of the requests that an upstream had at once."""
    moments = [(one.received_at, 1) for one in exchanges]
    moments += [(one.ended_at or one.received_at, -1) for one in exchanges]
    return max(itertools.accumulate(step for _, step in sorted(moments)), default=0)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_with_two_of_three_misbehaving_nobody_notices_and_nobody_pays_twice(
    house: House, record_property: Callable[[str, object], None]
) -> None:
    customer = a_customer(house.server, credits=10_000_000)
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS + 1) as threads:
        chaos = threads.submit(misbehave, house, stop, 4)
        until = time.monotonic() + SECONDS
        running = [
            threads.submit(keep_asking, customer, until, client) for client in range(CLIENTS)
        ]
        asked = [one for client in running for one in client.result()]
        stop.set()
        played = chaos.result()

    failed = [one for one in asked if one.reply.status != 200]
    broken = [one for one in asked if not one.ended_well]
    exchanges = house.exchanges()
    receipts = {one.request_id: customer.receipt(one.request_id) for one in asked}
    tries = sum(len(receipt["attempts"]) for receipt in receipts.values())
    figures = {
        "requests": len(asked),
        "tries": tries,
        "failed": len(failed),
        "broken": len(broken),
        "faults": dict(played),
        "most at the healthy one": most_at_a_time(house.upstreams["healthy"].exchanges),
    }
    record_property("chaos", str(figures))

    # No request that had a healthy upstream failed before its first byte.
    assert [json.loads(one.reply.body) for one in failed] == [], figures
    # One that broke off later was served by one of the two.
    assert all(receipts[one.request_id]["upstream"] != "healthy" for one in broken), figures
    # Each was charged once, for what its client was given, by what one upstream sent of it.
    spent = sum(receipt["credits"]["consumed"] for receipt in receipts.values())
    assert customer.balance == customer.available == 10_000_000 - spent
    for one in asked:
        receipt = receipts[one.request_id]
        usage = receipt["usage"]
        served = [e for name, e in exchanges[one.request_id] if name == receipt["upstream"]]
        assert receipt["credits"]["consumed"] in (
            0,
            usage["prompt_tokens"] + 2 * usage["completion_tokens"],
        )
        assert usage["completion_tokens"] <= max(e.content_tokens_started for e in served)
        if one.ended_well:
            assert (usage["prompt_tokens"], usage["completion_tokens"]) == (9, CHUNKS), receipt
        else:
            assert usage["completion_tokens"] == one.deltas, receipt
        # The receipt lists every try, and each had the request's own id.
        assert [try_["upstream"] for try_ in receipt["attempts"]][-1] == receipt["upstream"]
        assert len(receipt["attempts"]) <= 3
    assert all(
        one.header("X-Credits-Consumed") == str(receipts[request.request_id]["credits"]["consumed"])
        for request in asked
        if not request.streamed
        for one in [request.reply]
    )
    # The one that was well ran no more than it may.
    assert 0 < most_at_a_time(house.upstreams["healthy"].exchanges) <= CONCURRENT
    # It looked at something: each kind of fault, and many failovers.
    assert set(played) >= {"cut", "reset", "black hole", "corrupt", "delay", "slice", "refuse"}
    assert len(asked) > 300
    assert tries > len(asked) + (5 if house.circuits else 50)
    assert house.circuits or broken

    # When all is well again, all of them serve and nothing is left behind.
    eventually(
        lambda: (
            customer.chat().status == 200
            and all(one["condition"] == "serving" for one in house.listed().values())
        ),
        90,
    )
    assert all((one["inFlight"], one["waiting"]) == (0, 0) for one in house.listed().values()), (
        house.listed()
    )
