"""30 requests a minute, exactly; 64 at a time; and a valid token is never refused for the guesses
of others. That no span of 60 seconds admits 31 is shown with a clock that a test moves, in
tests/unit/rates."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.acceptance.conftest import MODELS, UPSTREAM_KEY
from tests.support.answers import Answer, pause, reply, stream
from tests.support.customer import Customer, a_customer, eventually
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import RawClient, Reply
from tests.support.server import TollwayServer

ELSEWHERE = "198.51.100.7"


@pytest.fixture(scope="module")
def settings() -> str:
    # The limits are the defaults. Tests come from several addresses.
    return '[server]\ntrusted_proxies = ["127.0.0.0/8"]\n'


def guess(server: TollwayServer, address: str, token: str = "tw_wrong") -> Reply:  # noqa: S107
    with RawClient("127.0.0.1", server.port) as client:
        authorization = ("Authorization", f"Bearer {token}")
        client.request("GET", "/v1/models", None, authorization, ("X-Forwarded-For", address))
        return client.read_reply()


def at_once(count: int, customer: Customer, **fields: object) -> list[Reply]:
    replies: list[Reply] = []
    threads = [
        threading.Thread(target=lambda: replies.append(customer.chat(**fields)))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


@contextmanager
def running(customer: Customer, count: int) -> Generator[list[RawClient]]:
    clients = [customer.begin_chat(stream=True, max_tokens=16) for _ in range(count)]
    for client in clients:
        assert client.read_head().status == 200
    yield clients
    for client in clients:
        client.close()


# --- a minute -------------------------------------------------------------------------------------


def test_thirty_requests_are_admitted_and_the_next_is_told_when_to_come_back(
    customer: Customer,
) -> None:
    admitted = [customer.chat(max_tokens=16) for _ in range(30)]
    refused = customer.chat(max_tokens=16)

    assert [one.status for one in admitted] == [200] * 30
    told = [int(one.header("x-ratelimit-remaining-requests") or "") for one in admitted]
    assert told == list(range(29, -1, -1))
    assert refused.status == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.header("x-ratelimit-limit-requests") == "30"
    assert refused.header("x-ratelimit-remaining-requests") == "0"
    seconds = int(refused.header("Retry-After") or "")
    milliseconds = int(refused.header("retry-after-ms") or "")
    # From the oldest of the thirty, which was a moment ago.
    assert 40 < seconds <= 60
    assert seconds - 1 < milliseconds / 1000 <= seconds
    assert refused.header("X-Credits-Consumed") == "0"
    assert "30" in refused.json()["error"]["message"]


def test_of_many_at_once_exactly_thirty_are_admitted(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("a").delayed(0.2), times=None)

    statuses = [one.status for one in at_once(45, customer, max_tokens=16)]

    assert statuses.count(200) == 30
    assert statuses.count(429) == 15


def test_streams_and_replies_and_all_tokens_of_an_account_count_together(
    customer: Customer,
) -> None:
    other = customer.with_token()

    for _ in range(15):
        assert customer.chat(max_tokens=16, stream=True).status == 200
        assert other.over("/v1").chat(max_tokens=16).status == 200

    assert customer.chat(max_tokens=16).status == 429
    assert other.chat(max_tokens=16).status == 429


def test_another_account_is_not_touched(server: TollwayServer) -> None:
    busy = a_customer(server, limits={"requests_per_minute": 2})
    quiet = a_customer(server)

    assert [busy.chat().status for _ in range(3)] == [200, 200, 429]
    assert quiet.chat().status == 200


def test_other_routes_have_a_limit_of_their_own(customer: Customer) -> None:
    for _ in range(100):
        assert customer.get("/accounts/me").status == 200
    refused = customer.get("/models")

    assert refused.status == 429
    assert refused.header("x-ratelimit-limit-requests") == "100"
    assert 1 <= int(refused.header("Retry-After") or "") <= 60
    assert customer.chat().status == 200


def test_a_token_may_have_a_limit_of_its_own(customer: Customer) -> None:
    limited = customer.with_token(requests_per_minute=2)

    assert [limited.chat().status for _ in range(3)] == [200, 200, 429]
    refused = limited.chat()
    assert refused.header("Retry-After")
    assert refused.header("x-ratelimit-limit-requests") == "2"
    assert refused.header("x-ratelimit-remaining-requests") == "0"
    assert customer.chat().status == 200


def test_a_restart_gives_nobody_a_second_minutes_worth(
    running_upstream: FakeUpstream, tmp_path: Path
) -> None:
    config = MODELS.format(upstream=running_upstream.base_url)
    server = TollwayServer(tmp_path / "data", config, env={"GPU_1_KEY": UPSTREAM_KEY})
    with server:
        customer = a_customer(server)
        assert [customer.chat(max_tokens=16).status for _ in range(30)] == [200] * 30
    with server:
        refused = customer.chat(max_tokens=16)

    assert refused.status == 429


# --- at a time ------------------------------------------------------------------------------------


def test_sixty_four_run_at_a_time_and_the_next_is_refused(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    customer = a_customer(server, credits=10**6, limits={"requests_per_minute": 1000})
    upstream.answer(long(), times=64)

    with running(customer, 64):
        refused = customer.chat(max_tokens=16)

    assert refused.status == 429
    assert refused.json()["error"]["code"] == "concurrency_limit_exceeded"
    assert 1 <= int(refused.header("Retry-After") or "") <= 60
    # It took no place of the rate: the limit at a time is looked at first.
    assert refused.header("x-ratelimit-remaining-requests") == str(1000 - 64)


def test_a_place_is_free_again_when_its_request_ends(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    customer = a_customer(server, limits={"concurrent_requests": 1})
    upstream.answer(long())

    with running(customer, 1) as (client,):
        refused = customer.chat()
        client.reset()
        eventually(lambda: customer.chat().status == 200, 1.0)

    assert refused.json()["error"]["code"] == "concurrency_limit_exceeded"


def long() -> Answer:
    return stream(["a", pause(1.5), "b"])


# --- failed authentication ------------------------------------------------------------------------


def test_ten_failures_of_an_address_in_a_minute_and_no_more(server: TollwayServer) -> None:
    statuses = [guess(server, "203.0.113.1").status for _ in range(12)]
    refused = guess(server, "203.0.113.1")

    assert statuses == [401] * 10 + [429] * 2
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.header("Retry-After") or "") <= 60
    assert guess(server, ELSEWHERE).status == 401


def test_a_valid_token_is_never_refused_for_failures(
    server: TollwayServer, customer: Customer
) -> None:
    for _ in range(15):
        guess(server, "203.0.113.2")

    assert guess(server, "203.0.113.2").status == 429
    assert guess(server, "203.0.113.2", customer.token).status == 200
    assert customer.chat(("X-Forwarded-For", "203.0.113.2")).status == 200
