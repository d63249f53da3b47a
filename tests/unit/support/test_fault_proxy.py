"""The proxy does to a reply what it was told, at the byte that it was told, and to nothing else."""

import http.client
from collections.abc import Iterator

import pytest
from tests.support.answers import reply
from tests.support.builders import chat_bytes
from tests.support.fake_upstream import FakeUpstream
from tests.support.fault_proxy import (
    BLACK_HOLE,
    CORRUPT,
    CUT,
    DELAY,
    REFUSE,
    RESET,
    SLICE,
    Fault,
    FaultProxy,
)
from tests.support.http import BodyCutError, RawClient


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        upstream.answer(reply("Hello there", input_tokens=9), times=None)
        yield upstream


@pytest.fixture
def proxy(upstream: FakeUpstream) -> Iterator[FaultProxy]:
    with FaultProxy(upstream.port) as proxy:
        yield proxy


def asked(client: RawClient) -> bytes:
    client.request("POST", "/v1/chat/completions", chat_bytes())
    return client.read_reply().body


def ask(proxy: FaultProxy, seconds: float = 5.0) -> bytes:
    with RawClient("127.0.0.1", proxy.port, timeout_seconds=seconds) as client:
        return asked(client)


def test_without_a_fault_all_passes_and_the_connection_is_kept(
    proxy: FaultProxy, upstream: FakeUpstream
) -> None:
    with RawClient("127.0.0.1", proxy.port) as client:
        replies = [asked(client) for _ in range(3)]
    assert all(b"Hello there" in body for body in replies)
    assert (proxy.connections, upstream.connections_opened) == (1, 1)
    assert proxy.faults_played == {}


@pytest.mark.parametrize("fault", [CUT, RESET], ids=str)
@pytest.mark.parametrize("byte", [0, 40, 200])
def test_a_reply_ends_at_the_byte(proxy: FaultProxy, fault: Fault, byte: int) -> None:
    proxy.misbehave(fault.at(byte))
    with pytest.raises((BodyCutError, ConnectionError)):
        ask(proxy)
    proxy.behave()
    assert b"Hello there" in ask(proxy)


def test_each_reply_of_a_connection_has_bytes_of_its_own(proxy: FaultProxy) -> None:
    with RawClient("127.0.0.1", proxy.port) as client:
        asked(client)
        proxy.misbehave(CUT.at(40))
        with pytest.raises(BodyCutError):
            asked(client)


def test_a_sliced_or_delayed_reply_is_the_same(proxy: FaultProxy) -> None:
    whole = ask(proxy)
    for fault in (SLICE, DELAY.at(30)):
        proxy.misbehave(fault)
        assert len(ask(proxy)) == len(whole)


def test_a_black_hole_swallows_the_rest(proxy: FaultProxy, upstream: FakeUpstream) -> None:
    proxy.misbehave(BLACK_HOLE)
    with pytest.raises(TimeoutError):
        ask(proxy, seconds=0.2)
    assert upstream.last.finished


def test_a_corrupt_byte_is_no_utf_8(proxy: FaultProxy) -> None:
    proxy.misbehave(CORRUPT.at(250))
    with pytest.raises(UnicodeDecodeError):
        ask(proxy).decode()


def test_refused_connections_are_reset(proxy: FaultProxy) -> None:
    proxy.misbehave(REFUSE)
    with pytest.raises((ConnectionError, BodyCutError, http.client.HTTPException)):
        ask(proxy)
    assert proxy.faults_played == {"refuse": 1}
