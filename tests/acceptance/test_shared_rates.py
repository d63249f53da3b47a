"""Rates in a Valkey (here: Redis) that several servers share, and survive all of them."""

from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.acceptance.conftest import MODELS, UPSTREAM_KEY
from tests.support.answers import reply
from tests.support.customer import a_customer, eventually
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import RawClient
from tests.support.redis import RedisServer, a_redis
from tests.support.server import TollwayServer

ADDRESS = "203.0.113.9"


@pytest.fixture
def redis() -> Generator[RedisServer]:
    with a_redis(password="s3cret") as server:
        yield server


def a_server(folder: Path, upstream: FakeUpstream, redis: RedisServer) -> TollwayServer:
    head = '[server]\nrate_store = "env:RATES"\ntrusted_proxies = ["127.0.0.0/8"]\n'
    config = head + MODELS.format(upstream=upstream.base_url)
    return TollwayServer(folder, config, env={"GPU_1_KEY": UPSTREAM_KEY, "RATES": redis.url})


def guess(server: TollwayServer) -> int:
    with RawClient("127.0.0.1", server.port) as client:
        token = ("Authorization", "Bearer tw_wrong")
        client.request("GET", "/v1/models", None, token, ("X-Forwarded-For", ADDRESS))
        return client.read_reply().status


def metric(server: TollwayServer, name: str) -> float:
    with RawClient("127.0.0.1", server.port) as client:
        client.request("GET", "/metrics", None)
        page = client.read_reply().body.decode()
    (value,) = [line.split()[1] for line in page.splitlines() if line.startswith(name + " ")]
    return float(value)


def test_thirty_requests_are_admitted_and_a_restart_forgets_none(
    upstream: FakeUpstream, redis: RedisServer, tmp_path: Path
) -> None:
    server = a_server(tmp_path / "data", upstream, redis)
    with server:
        customer = a_customer(server)
        replies = [customer.chat(max_tokens=16) for _ in range(30)]
        told = [int(one.header("x-ratelimit-remaining-requests") or "") for one in replies]
        assert told == list(range(29, -1, -1))
    with server:
        refused = customer.chat(max_tokens=16)

    assert refused.status == 429
    assert 1 <= int(refused.header("Retry-After") or "") <= 60


def test_servers_count_failed_authentications_of_an_address_together(
    upstream: FakeUpstream, redis: RedisServer, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(a_server(tmp_path / name, upstream, redis)) for name in "abc"
        ]
        statuses = [guess(servers[number % 3]) for number in range(15)]

    assert statuses == [401] * 10 + [429] * 5


def test_requests_go_on_while_valkey_hangs_and_after_it_is_killed(
    upstream: FakeUpstream, redis: RedisServer, tmp_path: Path
) -> None:
    with a_server(tmp_path / "data", upstream, redis) as server:
        customer = a_customer(server)
        assert metric(server, "tollway_rates_exact") == 1
        redis.pause()
        statuses = [customer.chat(max_tokens=16).status for _ in range(31)]
        assert statuses == [200] * 30 + [429]
        assert metric(server, "tollway_rates_exact") == 0
        assert metric(server, "tollway_rate_store_falls_total") == 1
        redis.resume()
        eventually(lambda: metric(server, "tollway_rates_exact") == 1, 20.0)
        redis.kill()
        assert customer.chat(max_tokens=16).status == 429
        assert metric(server, "tollway_rate_store_falls_total") == 2
    eventually(lambda: "the rate store has gone" in server.stderr, 10.0)


def test_a_place_at_a_time_is_free_again_when_its_request_ends(
    upstream: FakeUpstream, redis: RedisServer, tmp_path: Path
) -> None:
    upstream.answer(reply("a").delayed(0.05), times=None)
    with a_server(tmp_path / "data", upstream, redis) as server:
        customer = a_customer(server, limits={"concurrent_requests": 1})
        assert [customer.chat(max_tokens=16).status for _ in range(10)] == [200] * 10


def test_a_server_whose_rate_store_is_away_does_not_start_and_says_why(
    upstream: FakeUpstream, redis: RedisServer, tmp_path: Path
) -> None:
    server = a_server(tmp_path / "data", upstream, redis)
    checked = server.command("check")
    assert f"redis://127.0.0.1:{redis.port}/0 (redis " in checked.stdout
    redis.kill()

    checked = server.command("check")
    server.launch()
    status = server.wait(30.0)

    assert (checked.status, status) == (1, 1)
    for said in (checked.stderr, server.stderr):
        assert "server.rate_store" in said
        assert "s3cret" not in said
