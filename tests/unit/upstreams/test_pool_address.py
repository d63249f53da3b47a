"""Where the HTTP client connects to: which addresses it may, and how a name becomes one."""

import asyncio
import gc
import socket

import pytest
from tests.unit.upstreams.raw_server import Kept, Server, ask

from tollway.deadlines import Deadlines
from tollway.errors import ConfigurationError, Unavailable, UpstreamTimeout
from tollway.upstreams.pool import ConnectionPool


@pytest.mark.parametrize(
    "url",
    [
        "gpu-1:8000",
        "ftp://gpu-1/",
        "http://",
        "http://user:secret@gpu-1/v1",
        "http://:secret@gpu-1/v1",
        "http://gpu-1/v1?key=x",
        "http://gpu-1/v1#x",
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        ConnectionPool(url)
    assert "secret" not in refused.value.message


def test_an_address_has_its_usual_port() -> None:
    assert ConnectionPool("http://gpu-1/v1/").port == 80
    pool = ConnectionPool("https://gpu-1/v1/")
    assert (pool.port, pool.path, pool.host_header) == (443, "/v1", "gpu-1")


class Names:
    """A resolver: each look-up of `gpu.example` gives the next of what it was told, the last for
    ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
        self.looked_up = 0
        self._answers = [answer.split() for answer in answers]
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self._look_up)

    async def _look_up(self, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert host == "gpu.example", "an address was looked up again"
        self.looked_up += 1
        addresses = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, 1, 6, "", (address, port))
            for address in addresses
        ]


async def test_a_name_is_looked_up_once_for_a_connection_and_that_address_connected_to(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch, "127.0.0.1", "169.254.169.254")
    pool = ConnectionPool(f"http://gpu.example:{server.port}/v1")
    for _ in range(3):
        assert (await ask(pool)).data == b"hello"
    assert (server.connections, names.looked_up) == (1, 1)
    await pool.close()


async def test_those_who_connect_at_the_same_time_share_a_look_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch, "127.0.0.1", "127.0.0.9")
    pool = ConnectionPool(f"http://gpu.example:{server.port}/v1")
    asking = [asyncio.create_task(ask(pool)) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()  # it began the look-up, and the others still wait for it
    said = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(said[0], asyncio.CancelledError)
    assert [isinstance(one, Kept) and one.data for one in said[1:]] == [b"hello"] * 4
    assert (server.connections, names.looked_up) == (4, 1)
    await pool.close()


async def test_an_address_is_not_looked_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, "127.0.0.9")
    for host in ("127.0.0.1", "2130706433", "0x7f.1"):
        pool = ConnectionPool(f"http://{host}:{server.port}/v1")
        assert (await ask(pool)).data == b"hello"
        await pool.close()
    assert names.looked_up == 0


async def test_a_name_that_turns_to_a_metadata_service_is_not_connected_to(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Names(monkeypatch, "127.0.0.1", "169.254.169.254")
    pool = ConnectionPool(f"http://gpu.example:{server.port}/v1")
    await ask(pool)
    server.close_all()
    await asyncio.sleep(0.02)
    with pytest.raises(Unavailable, match="its operator finds why in the log") as refused:
        await ask(pool)
    assert not refused.value.was_sent
    assert "gpu.example is at 169.254.169.254: it is a cloud's metadata service" in caplog.text
    await pool.close()


@pytest.mark.parametrize(
    "addresses",
    ["127.0.0.1 169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254 127.0.0.1"],
)
async def test_one_address_that_is_refused_spoils_the_name(
    server: Server, monkeypatch: pytest.MonkeyPatch, addresses: str
) -> None:
    Names(monkeypatch, addresses)
    pool = ConnectionPool(f"http://gpu.example:{server.port}/v1")
    with pytest.raises(Unavailable, match="its operator finds why in the log"):
        await ask(pool)
    assert server.connections == 0


async def test_the_next_address_of_a_name_is_tried_where_one_does_not_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    Names(monkeypatch, "127.0.0.9 127.0.0.1")  # the server listens on the second alone
    pool = ConnectionPool(f"http://gpu.example:{server.port}/v1")
    assert (await ask(pool)).data == b"hello"
    await pool.close()


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "2852039166", "metadata"])
def test_a_pool_to_where_nothing_may_be_sent_cannot_be_made(host: str) -> None:
    with pytest.raises(ConfigurationError, match="may not be at"):
        ConnectionPool(f"http://{host}/v1")


async def test_a_name_that_no_resolver_takes_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await ask(ConnectionPool(f"http://{'a' * 64}.example/v1"))


async def test_a_name_that_takes_too_long_to_look_up_was_sent_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    pool = ConnectionPool("http://gpu.example/v1", Deadlines(connect_seconds=0.05))
    with pytest.raises(UpstreamTimeout, match=r"within 0\.05 s") as refused:
        await ask(pool)
    assert not refused.value.was_sent


async def test_a_name_may_be_at_a_link_local_address_where_its_setting_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    Names(monkeypatch, "fe80::1 127.0.0.1")  # the first needs an interface, and fails at once
    pool = ConnectionPool(f"http://gpu.example:{server.port}/v1", allow_link_local=True)
    assert (await ask(pool)).data == b"hello"
    await pool.close()


async def test_a_look_up_that_fails_when_all_have_left_is_told_to_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = asyncio.Event()
    failed = asyncio.Event()

    async def fail(*_: object, **__: object) -> None:
        await left.wait()
        failed.set()
        raise OSError("no such name")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
    pool = ConnectionPool("http://gpu.example/v1", Deadlines(connect_seconds=0.01))
    with pytest.raises(UpstreamTimeout):
        await ask(pool)
    caplog.clear()
    left.set()
    await failed.wait()
    await asyncio.sleep(0)
    gc.collect()
    assert not caplog.records
