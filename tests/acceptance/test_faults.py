"""The rows of the fault table that need the whole program, each with its figure: run with `-s` to
read them (docs/reliability.md). What the upstream truly sent is the oracle."""

import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from tests.acceptance.conftest import assert_ledger_is_whole
from tests.support.answers import Answer, Pause, pause, reply, stream
from tests.support.builders import message
from tests.support.customer import Customer, a_customer, eventually
from tests.support.fake_upstream import Exchange, FakeUpstream
from tests.support.http import BodyCutError, RawClient, Reply
from tests.support.server import TollwayServer

HELLO = [message("Hello!")]
COUNTED_INPUT = 2  # six bytes
BOUND = 6 + 16 + 256
UNLIMITED = {"requests_per_minute": 1_000_000, "concurrent_requests": 2_000}
CUTS_AT_ONCE = 16
WORDS = ["Hel", "lo", " wor", "ld", "!"]

Figure = Callable[[str, object], None]


@pytest.fixture
def figure(record_property: Figure) -> Figure:
    def record(name: str, value: object) -> None:
        record_property(name, value)
        os.write(1, f"\n    {name}: {value}\n".encode())

    return record


@pytest.fixture
def own_settings() -> str:
    return "[server]\ndrain_seconds = 20\n"


# --- the upstream breaks --------------------------------------------------------------------------


def _length_of(upstream: FakeUpstream, customer: Customer, answer: Answer, streams: bool) -> int:
    upstream.answer(answer)
    customer.chat(messages=HELLO, stream=streams, max_tokens=50)
    return upstream.ended().bytes_sent


@pytest.mark.slow
def test_a_stream_cut_at_any_byte_costs_what_was_sent(
    upstream: FakeUpstream, server: TollwayServer, figure: Figure
) -> None:
    customer = a_customer(server, credits=10_000_000, limits=UNLIMITED)
    answer = stream(WORDS, usage=None)
    length = _length_of(upstream, customer, answer, streams=True)
    spent = 10_000_000 - customer.balance
    errors: list[int] = []

    all_told = _cut_at_each(length, answer, upstream, customer, streams=True)
    tries = _last_tries(upstream)
    for byte, told in enumerate(all_told):
        tokens = tries[told.header("x-request-id") or ""].content_tokens_sent
        charged = _charged(told)
        errors.append(_tokens(charged) - tokens)
        assert charged == (COUNTED_INPUT + 2 * tokens if tokens else 0)
        spent += charged
        # Once [DONE] was sent, what is missing is only the end of the message.
        assert _ended_with_an_error(told) == (byte < length - len(b"\r\n0\r\n\r\n"))

    assert customer.balance == customer.available == 10_000_000 - spent
    figure("cuts of a stream", length)
    figure("worst error in tokens", max(map(abs, errors)))


@pytest.mark.slow
def test_a_whole_reply_cut_at_any_byte_costs_nothing(
    upstream: FakeUpstream, server: TollwayServer, figure: Figure
) -> None:
    customer = a_customer(server, credits=1_000_000, limits=UNLIMITED)
    answer = reply("Hello", input_tokens=9, output_tokens=3)
    length = _length_of(upstream, customer, answer, streams=False)
    before = customer.balance

    for told in _cut_at_each(length, answer, upstream, customer, streams=False):
        assert told.status == 502
        assert told.header("x-credits-consumed") == "0"

    assert customer.balance == customer.available == before
    figure("cuts of a whole reply", length)


def _cut_at_each(
    length: int, answer: Answer, upstream: FakeUpstream, customer: Customer, *, streams: bool
) -> list[Reply]:
    """By byte. Several at a time: before it asks an upstream again the server waits a little, and
    nobody need wait for that. Whoever asks again gets the same cut."""
    upstream.answer_with(lambda exchange: answer.cut_at(int(exchange.body["user"])))

    def told(byte: int) -> Reply:
        return customer.chat(messages=HELLO, stream=streams, max_tokens=50, user=str(byte))

    with ThreadPoolExecutor(CUTS_AT_ONCE) as clients:
        return list(clients.map(told, range(length)))


def _last_tries(upstream: FakeUpstream) -> dict[str, Exchange]:
    """By the request's id, each once it has ended."""
    last = {one.header("x-request-id") or "": one for one in upstream.exchanges}
    upstream.wait_until(lambda: all(one.ended is not None for one in last.values()))
    return last


def _charged(told: Reply) -> int:
    if told.status != 200:
        return int(told.header("x-credits-consumed") or 0)
    (comment,) = [e.comment for e in told.events if e.comment and e.comment.startswith("credits")]
    return int(comment.split("consumed=")[1].split(" ")[0])


def _tokens(charged: int) -> int:
    return max(0, charged - COUNTED_INPUT) // 2


def _ended_with_an_error(told: Reply) -> bool:
    if told.status != 200:
        return told.status == 502
    last = told.events[-1]
    return last.data not in (None, "[DONE]") and "error" in last.json()


LIES: list[dict[str, Any]] = [
    {"usage": lie, "ignore_max_tokens": ignores, "chunks": chunks}
    for lie in ("none", "zero", "negative", "huge", "text", "falling", "twice", "running")
    for ignores, chunks in ((False, 5), (True, 400))
]


def test_an_upstream_that_lies_or_does_not_end_costs_at_most_the_hold(
    server: TollwayServer, figure: Figure
) -> None:
    overspent = shortfalls = 0
    for lie in LIES:
        customer = a_customer(server)
        told = customer.chat(messages=HELLO, stream=True, max_tokens=20, user=json.dumps(lie))
        receipt = customer.receipt_of(told)
        tokens = sum("content" in _delta(event.data) for event in told.events)
        hold = int(told.header("x-credits-reserved") or 0)
        assert told.events[-1].data == "[DONE]"
        assert hold == BOUND + 2 * 20
        assert receipt["credits"]["consumed"] == 100_000 - customer.balance <= hold
        assert tokens <= 21  # the role's delta has an empty one
        overspent += max(0, receipt["credits"]["consumed"] - hold)
        shortfalls += receipt["credits"]["shortfall"] > 0
    figure("lies", len(LIES))
    figure("overspent", overspent)
    figure("shortfalls flagged", shortfalls)
    assert shortfalls == 2  # the two that reported a huge usage


def _delta(data: str | None) -> dict[str, Any]:
    if data is None or data == "[DONE]":
        return {}
    choices: list[dict[str, Any]] = json.loads(data).get("choices") or [{}]
    delta: dict[str, Any] | None = choices[0].get("delta")
    return delta or {}


# --- clients break --------------------------------------------------------------------------------


def test_a_client_gone_at_each_chunk_pays_for_what_was_written_and_stops_the_upstream(
    upstream: FakeUpstream, server: TollwayServer, figure: Figure
) -> None:
    customer = a_customer(server, limits=UNLIMITED)
    milliseconds: list[float] = []
    for chunks in range(1, 13):
        upstream.answer(stream(["a"] * chunks + ["b"] * 2000, pace_seconds=0.004, usage=None))
        client = customer.begin_chat(messages=HELLO, stream=True, max_tokens=1000)
        request_id = client.read_head().header("x-request-id") or ""
        client.read_events(chunks + 1)  # the role is the first
        left_at = time.monotonic()
        client.reset()
        sent = upstream.ended()
        assert sent.ended == "peer left"
        assert sent.peer_left_at is not None
        milliseconds.append(1000 * (sent.peer_left_at - left_at))
        _wait_for_receipt(customer, request_id)
        tokens = customer.receipt(request_id)["usage"]["completion_tokens"]
        # What was on its way between the two when the client left may have been written or not.
        assert chunks <= tokens <= sent.content_tokens_sent
    figure("ms from leaving to the upstream's end, worst", round(max(milliseconds), 1))
    assert max(milliseconds) < 1000


def _wait_for_receipt(customer: Customer, request_id: str) -> None:
    eventually(lambda: customer.get(f"/receipts/{request_id}").status == 200, 2.0)


DEAF_CLIENTS = 1000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_clients_that_never_read_take_little_memory_and_harm_nobody(
    upstream: FakeUpstream, own_server: TollwayServer, figure: Figure
) -> None:
    # Of the upstream with patience: the test's own one is what is slow here.
    deaf, well = (
        a_customer(own_server, credits=50_000_000, model="acme/slow", limits=UNLIMITED)
        for _ in range(2)
    )
    upstream.answer_with(
        lambda exchange: (
            stream(_endless(upstream), usage=None)
            if exchange.body.get("user") == "deaf"
            else reply("Hello")
        )
    )
    well.chat(messages=HELLO)
    process = psutil.Process(own_server.pid)
    before = process.memory_info().rss

    clients = [_a_deaf_client(deaf) for _ in range(DEAF_CLIENTS)]
    try:
        upstream.wait_until(lambda: len(upstream.exchanges) > DEAF_CLIENTS, 60)
        peak = _memory_until_all_are_full(upstream, process)
        took: list[float] = []
        for _ in range(100):
            began = time.monotonic()
            assert well.chat(messages=HELLO).status == 200
            took.append(time.monotonic() - began)
            peak = max(peak, process.memory_info().rss)
        # A client that takes nothing for 30 s is cut off, pays, and holds nothing any more.
        eventually(lambda: _held(deaf) == 0, 60)
    finally:
        for client in clients:
            client.close()

    kib = (peak - before) / 1024 / DEAF_CLIENTS
    figure("KiB a client that never reads", round(kib, 1))
    figure("ms of others meanwhile, worst of 100", round(1000 * max(took), 1))
    figure("credits that they paid", 50_000_000 - deaf.balance)
    assert kib < 256
    assert max(took) < 1.0
    assert deaf.balance < 50_000_000


def _held(customer: Customer) -> int:
    """Asked of the operator's socket, which has no rate."""
    return customer.server.operate("account show", name=customer.account_id)["creditsHeld"]


def _endless(upstream: FakeUpstream) -> Iterator[str | Pause]:
    """First all are there, then it begins."""
    yield "x"
    while len(upstream.exchanges) <= DEAF_CLIENTS:
        yield pause(0.5)
    yield from itertools.repeat("x" * 60_000)


def _memory_until_all_are_full(upstream: FakeUpstream, process: psutil.Process) -> int:
    """The most it was. The kernel takes some megabytes for each before anybody has to wait."""
    peak = sent = quiet = 0
    while quiet < 5 or sent < 10_000 * DEAF_CLIENTS:
        time.sleep(0.5)
        peak = max(peak, process.memory_info().rss)
        before, sent = sent, sum(exchange.bytes_sent for exchange in upstream.exchanges)
        quiet = quiet + 1 if sent == before else 0
    return peak


def _a_deaf_client(customer: Customer) -> socket.socket:
    """With little room in its kernel, so that what it does not read stays with the server."""
    body = json.dumps(
        customer.chat_fields(messages=HELLO, stream=True, max_tokens=2000, user="deaf")
    ).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", customer.server.port))
    head = (
        f"POST {customer.base}/chat/completions HTTP/1.1\r\nhost: tollway\r\n"
        f"authorization: Bearer {customer.token}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    client.sendall(head.encode() + body)
    return client


def test_of_200_requests_at_once_those_run_that_the_balance_affords(
    upstream: FakeUpstream, server: TollwayServer, figure: Figure
) -> None:
    affordable, hold = 7, BOUND + 2 * 20
    customer = a_customer(server, credits=affordable * hold + 5, limits=UNLIMITED)
    upstream.answer(reply("a", input_tokens=9, output_tokens=20).delayed(1.5), times=None)

    with ThreadPoolExecutor(200) as pool:
        asked = [pool.submit(customer.chat, messages=HELLO, max_tokens=20) for _ in range(200)]
        statuses = [one.result().status for one in asked]

    spent = affordable * hold + 5 - customer.balance
    figure("requests at once, run, refused", (200, statuses.count(200), statuses.count(402)))
    figure("overspent", max(0, spent - statuses.count(200) * (9 + 2 * 20)))
    assert statuses.count(200) == affordable
    assert statuses.count(402) == 200 - affordable
    assert spent == affordable * (9 + 2 * 20)
    assert customer.available == customer.balance >= 0


# --- the process is stopped -----------------------------------------------------------------------


def test_sigterm_under_load_lets_every_request_that_began_end_well(
    upstream: FakeUpstream, own_server: TollwayServer, figure: Figure
) -> None:
    customer = a_customer(own_server, credits=1_000_000, limits=UNLIMITED)
    upstream.answer(stream(["a"] * 30, input_tokens=9, pace_seconds=0.05), times=None)
    load = _Load(customer, clients=20)
    load.begin()
    eventually(lambda: load.begun > 40, 20)

    stopped = time.monotonic()
    status = own_server.stop()
    seconds = time.monotonic() - stopped
    load.end()

    figure("requests that had begun, failed", (load.begun, load.begun - load.finished))
    figure("seconds to stop", round(seconds, 2))
    assert status == 0
    assert load.finished == load.begun
    assert_ledger_is_whole(own_server)
    own_server.start()
    assert customer.available == customer.balance == 1_000_000 - load.finished * (9 + 2 * 30)


def test_a_process_that_is_stopped_and_goes_on_ends_its_requests_and_overcharges_none(
    upstream: FakeUpstream, own_server: TollwayServer, figure: Figure
) -> None:
    customer = a_customer(own_server, credits=1_000_000, limits=UNLIMITED)
    upstream.answer(stream(["a"] * 60, input_tokens=9, pace_seconds=0.05), times=None)
    load = _Load(customer, clients=10)
    load.begin()
    eventually(lambda: load.begun >= 10, 10)

    own_server.signal(signal.SIGSTOP)
    time.sleep(5)  # longer than the upstream's silence may last
    own_server.signal(signal.SIGCONT)
    load.end()

    eventually(lambda: customer.available == customer.balance, 5)
    spent = 1_000_000 - customer.balance
    due = load.tokens * 2 + load.begun * 9
    figure("requests over a stop of 5 s, whole", (load.begun, load.finished))
    figure("over-charged", max(0, spent - due))
    assert load.finished == load.begun
    assert spent <= due
    assert_ledger_is_whole(own_server)


class _Load:
    """Clients that stream one request after another, and count what they were given."""

    def __init__(self, customer: Customer, clients: int) -> None:
        self.begun = self.finished = self.tokens = 0
        self._customer = customer
        self._lock = threading.Lock()
        self._on = True
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._on = False
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while self._on:
            try:
                with self._customer.begin_chat(
                    messages=HELLO, stream=True, max_tokens=100
                ) as client:
                    self._watch(client)
            except (OSError, BodyCutError):
                time.sleep(0.05)  # not begun: the server takes no more, or has gone

    def _watch(self, client: RawClient) -> None:
        if client.read_head().status != 200:
            return
        with self._lock:
            self.begun += 1
        events = client.read_events()
        with self._lock:
            self.tokens += sum(bool(_delta(event.data).get("content")) for event in events)
            self.finished += events[-1].data == "[DONE]"
