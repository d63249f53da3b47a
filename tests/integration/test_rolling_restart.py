"""The topology of deploy/compose as plain processes: nginx or HAProxy, three replicas, Postgres and
Redis. Replicas are restarted one after another, and no request is lost."""

import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.answers import Answer, pause, reply, stream
from tests.support.builders import chat_bytes
from tests.support.customer import eventually
from tests.support.fake_upstream import Exchange, FakeUpstream
from tests.support.http import RawClient, Reply
from tests.support.ports import free_port
from tests.support.proxies import haproxy, nginx
from tests.support.redis import RedisServer, a_redis
from tests.support.server import TollwayServer, config_for

REPLICAS = 3
CLIENTS = 6  # of each proxy
SETTINGS = """
drain_delay_seconds = 3
trusted_proxies = ["127.0.0.0/8"]

[limits]
requests_per_minute = 1000000
concurrent_requests = 1000
"""


@dataclass
class Load:
    """Clients that send one request after another, on connections that they keep, plain and
    streamed in turn, until told to stop."""

    port: int
    token: str
    done: int = 0
    _count: threading.Lock = field(default_factory=threading.Lock)
    lost: list[str] = field(default_factory=list[str])
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list[threading.Thread])

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._client, args=(n,)) for n in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def go_on(self) -> None:
        """Returns when a good many more requests have been sent and answered."""
        enough = self.done + 4 * CLIENTS
        eventually(lambda: self.done >= enough or bool(self.lost), 60.0)

    def _client(self, number: int) -> None:
        client = RawClient("127.0.0.1", self.port)
        while not self._stop.is_set():
            streamed = (self.done + number) % 2 == 0
            try:
                self._ask(client, streamed)
            except Exception as error:  # noqa: BLE001 (whatever it is, the request is lost)
                self.lost.append(f"{streamed=} {error!r}")
                client.close()
                client = RawClient("127.0.0.1", self.port)
        client.close()

    def _ask(self, client: RawClient, streamed: bool) -> None:
        token = ("Authorization", f"Bearer {self.token}")
        client.request("POST", "/v1/chat/completions", _chat(streamed=streamed), token)
        reply = client.read_reply()
        assert reply.status == 200, reply.body
        if streamed:
            assert reply.events[-1].data == "[DONE]", reply.events
        with self._count:
            self.done += 1


@pytest.fixture
def upstream() -> Generator[FakeUpstream]:
    with FakeUpstream(models=("parrot-upstream",)) as running:
        running.answer_with(_answer)
        yield running


def _answer(asked: Exchange) -> Answer:
    if asked.body.get("stream"):
        return stream(["a", pause(0.2), "b", pause(0.1), "c"])
    return reply("a b c").delayed(0.2)


@pytest.fixture
def redis() -> Generator[RedisServer]:
    with a_redis() as server:
        yield server


@pytest.fixture
def replicas(
    upstream: FakeUpstream, database_url: str, redis: RedisServer, tmp_path: Path
) -> Generator[list[TollwayServer]]:
    """On one database and one rate store, each on a port that it keeps."""
    head = f'[server]\ndatabase = "{database_url}"\nrate_store = "{redis.url}"'
    config = config_for(upstream.base_url, more=head + SETTINGS)
    with ExitStack() as stack:
        servers: list[TollwayServer] = []
        for number in range(REPLICAS):
            arguments = ("--port", str(free_port()))
            server = TollwayServer(tmp_path / f"replica-{number}", config, arguments=arguments)
            servers.append(stack.enter_context(server))
        (token,) = [server.token for server in servers if server.token]
        for server in servers:
            server.token = token
        yield servers
        for server in servers:
            if server.runs:
                server.signal(signal.SIGTERM)  # they drain at the same time


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_replicas_are_restarted_one_after_another_and_no_request_is_lost(
    replicas: list[TollwayServer], upstream: FakeUpstream
) -> None:
    """Behind both proxies at once: neither does anything for the other, and a restart takes the
    same time for one as for two."""
    ports, token = [one.port for one in replicas], replicas[0].token
    with (
        nginx(ports) as nginx_port,
        haproxy(ports) as haproxy_port,
        Load(nginx_port, token) as through_nginx,
        Load(haproxy_port, token) as through_haproxy,
    ):
        loads = (through_nginx, through_haproxy)
        for replica in replicas:
            _go_on(loads)
            replica.signal(signal.SIGTERM)
            assert replica.wait(60) == 0
            _go_on(loads)
            replica.start()
        _go_on(loads)

    assert (through_nginx.lost, through_haproxy.lost) == ([], [])
    # Nothing was sent twice either, and each request was charged, once.
    done = through_nginx.done + through_haproxy.done
    assert len(upstream.exchanges) == done
    verified = replicas[0].command("ledger", "verify")
    assert verified.status == 0, verified.stdout
    (account,) = replicas[0].command("account", "list", "--json").json()["data"]
    assert account["creditBalance"] == 100_000 - done  # at one credit each


def _go_on(loads: Sequence[Load]) -> None:
    for load in loads:
        load.go_on()


def test_a_replica_that_winds_down_says_that_it_is_not_ready_and_still_serves(
    replicas: list[TollwayServer],
) -> None:
    replica = replicas[0]
    with RawClient("127.0.0.1", replica.port) as client:
        client.request("GET", "/readyz")
        assert client.read_reply().status == 200
        replica.signal(signal.SIGTERM)
        eventually(lambda: "Stopping" in replica.stdout, 5.0)
        ready = _asked(replica.port, "GET", "/readyz")
        served = _asked(replica.port, "POST", "/v1/chat/completions", replica.token)

    assert ready.status == 503
    assert "stopping" in ready.json()["reasons"][0]
    assert (served.status, served.header("connection")) == (200, "close")
    assert replica.wait(30) == 0


def _asked(port: int, method: str, path: str, token: str = "") -> Reply:
    body = _chat(streamed=False) if token else None
    with RawClient("127.0.0.1", port) as client:
        client.request(method, path, body, ("Authorization", f"Bearer {token}"))
        return client.read_reply()


def _chat(*, streamed: bool) -> bytes:
    return chat_bytes(model="acme/parrot", max_tokens=16, stream=streamed)
