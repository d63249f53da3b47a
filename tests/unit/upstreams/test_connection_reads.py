"""However a server's reply is cut into reads, the same is received: by the parser or past it."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.upstreams.raw_server import Kept

from tollway.deadlines import Deadlines
from tollway.errors import UpstreamFailed
from tollway.outbox import Outbox
from tollway.upstreams.connection import Connection, LearnedHeads, ResponseHead

HEAD = b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-type: application/json\r\n"


class Transport:
    """Only what the connection asks of its transport."""

    closing = False

    def get_extra_info(self, name: str) -> "Transport":
        assert name == "socket"
        return self

    def setsockopt(self, *option: int) -> None:
        del option

    def write(self, data: bytes) -> None:
        del data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close


def receive(replies: Sequence[Sequence[bytes]]) -> list[Kept]:
    """Each reply in its reads, all on one connection."""
    loop = asyncio.new_event_loop()
    try:
        connection = Connection(loop, Outbox(), LearnedHeads())
        transport: Any = Transport()
        connection.connection_made(transport)
        received: list[Kept] = []
        for reads in replies:
            of_one = Kept()
            done = connection.exchange(b"", of_one, Deadlines())
            for read in reads:
                assert not done.done()
                connection.data_received(read)
            assert done.done()
            assert done.exception() is None
            assert connection.is_open
            received.append(of_one)
        return received
    finally:
        loop.close()


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    at = sorted({place % len(data) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


contents = st.binary(min_size=1, max_size=30) | st.sampled_from(
    [b"\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"a", b"data: {}\n\n", b"x" * 5000]
)


def chunk(content: bytes, size: bytes) -> bytes:
    return size % len(content) + b"\r\n" + content + b"\r\n"


@settings(max_examples=400)
@given(
    st.lists(contents, min_size=1, max_size=6),
    st.lists(st.integers(0), max_size=8),
    st.lists(st.sampled_from([b"%x", b"%X", b"%03x", b"%x;name=value"]), min_size=1, max_size=2),
    st.integers(2, 4),
)
def test_a_stream_is_the_same_however_it_is_cut(
    parts: list[bytes], places: list[int], sizes: list[bytes], together: int
) -> None:
    chunks = [chunk(part, sizes[number % len(sizes)]) for number, part in enumerate(parts)]
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    whole = [head, *chunks, b"0\r\n\r\n"]
    several = [b"".join(chunks[at : at + together]) for at in range(0, len(chunks), together)]

    ways = [whole, cut(b"".join(whole), places), [head, *several, b"0\r\n\r\n"]]
    ways.append([head, *several[:-1], several[-1] + b"0\r\n\r\n"])

    for received in receive(ways):
        assert received.data == received.flushed == b"".join(parts)
        assert len(received.heads) == 1


@settings(max_examples=200)
@given(st.lists(contents, min_size=2, max_size=5), st.lists(st.integers(0), max_size=3))
def test_whole_replies_are_the_same_with_a_head_that_was_learned(
    bodies: list[bytes], places: list[int]
) -> None:
    replies = [HEAD + b"content-length: %d\r\n\r\n" % len(body) + body for body in bodies]

    at_once = receive([[reply] for reply in replies])
    in_pieces = receive([cut(reply, places) for reply in replies])

    for received, body in zip((*at_once, *in_pieces), (*bodies, *bodies), strict=True):
        assert received.data == received.flushed == body
        assert received.heads == [ResponseHead(200, b"application/json", ())]


def test_a_head_that_says_something_else_is_not_taken_for_the_learned_one() -> None:
    ok = HEAD + b"content-length: 2\r\n\r\nok"
    busy = b"HTTP/1.1 503 No\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\nno"

    received = receive([[ok], [ok], [busy], [busy], [ok], [ok]])

    assert [one.heads[0].status for one in received] == [200, 200, 503, 503, 200, 200]
    assert received[2].heads[0].retry_after == ((b"retry-after", b"7"),)
    assert [one.data for one in received] == [b"ok", b"ok", b"no", b"no", b"ok", b"ok"]


@pytest.mark.parametrize(
    "wrong", [b"2\r\nhi", b"2\r\nhixx", b"g\r\n", b"-2\r\nhi\r\n", b"2\nhi\r\n"]
)
def test_what_is_no_chunk_ends_the_connection_behind_chunks_that_are_sound(wrong: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    loop = asyncio.new_event_loop()
    connection = Connection(loop, Outbox(), LearnedHeads())
    transport: Any = Transport()
    connection.connection_made(transport)
    received = Kept()
    done = connection.exchange(b"", received, Deadlines())
    for read in (head, chunk(b"a", b"%x") * 2, chunk(b"b", b"%x") * 2 + wrong + chunk(b"c", b"%x")):
        connection.data_received(read)
    loop.close()
    assert isinstance(done.exception(), UpstreamFailed)
    assert received.data == b"aabb" + (b"hi" if wrong.startswith(b"2\r\n") else b"")


def test_a_stream_is_the_same_wherever_it_is_cut_twice() -> None:
    parts = [b"hi", b"hi\r\n" + b"x" * 14, b"2\r\nhi\r\n"]  # the second has the size 0x12
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b"".join(chunk(part, b"%x") for part in parts) + b"0\r\n\r\n"
    cuts = itertools.combinations(range(len(body) + 1), 2)

    for received in receive([[head, *cut(body, places)] for places in cuts]):
        assert received.data == b"".join(parts)
