"""The HTTP client against a real server: raw bytes for what HTTP allows, the fake upstream for what
takes its time."""

import asyncio

import pytest
from tests.unit.upstreams.raw_server import CHUNKED, OK, Kept, Server, ask

from tollway.errors import UpstreamFailed
from tollway.upstreams.connection import END_SECONDS_MAX, HEAD_BYTES_MAX, ResponseHead
from tollway.upstreams.pool import ConnectionPool


async def test_a_long_request_is_sent_in_its_pieces(server: Server, pool: ConnectionPool) -> None:
    server.answers(OK)
    server.answers(OK)
    text = memoryview(b"x" * 3_000_000)
    head = b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 6000006\r\n\r\n"

    for _ in range(2):
        kept = Kept()
        await pool.request(lambda: (head, b"{", text, b"", text, b"}\r\n\r\nhi"), kept)
        assert kept.data == b"hello"

    assert server.requests == [1, 1]


# --- replies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (OK, b"hello"),
        (CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"hello"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 3 + OK, b"hello"),
    ],
    ids=["length", "chunked", "empty", "no content", "continue", "early hints"],
)
@pytest.mark.parametrize("bytewise", [False, True])
async def test_a_reply_is_received_whole_and_its_connection_kept(
    server: Server, pool: ConnectionPool, reply: bytes, body: bytes, bytewise: bool
) -> None:
    pieces = [bytes([byte]) for byte in reply] if bytewise else [reply]
    server.answers(*pieces)

    kept = await ask(pool)
    assert kept.data == body
    assert len(kept.heads) == 1
    assert kept.heads[0].status in (200, 204)
    assert (await ask(pool)).data == b"hello"
    assert server.connections == 1


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ],
)
async def test_a_reply_without_a_length_ends_with_its_connection(
    server: Server, pool: ConnectionPool, head: bytes
) -> None:
    server.answers(head + b"hel", 0.01, b"lo", None)
    assert (await ask(pool)).data == b"hello"
    await ask(pool)
    assert server.connections == 2


async def test_a_connection_that_the_server_means_to_close_is_not_kept(
    server: Server, pool: ConnectionPool
) -> None:
    server.answers(OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    assert (await ask(pool)).data == b"hello"
    await ask(pool)
    assert server.connections == 2


async def test_what_the_gateway_reads_of_a_head(server: Server, pool: ConnectionPool) -> None:
    server.answers(
        b"HTTP/1.1 429 Slow Down\r\nContent-Type: Text/Event-Stream\r\nRetry-After: 7\r\n"
        b"content-length: 0\r\n\r\n"
    )
    said = ((b"retry-after", b"7"),)
    assert (await ask(pool)).heads == [ResponseHead(429, b"text/event-stream", said)]


async def test_each_read_is_flushed_once(server: Server, pool: ConnectionPool) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    server.answers(head + b"1\r\na\r\n1\r\nb\r\n", 0.02, b"1\r\nc\r\n1\r\nd\r\n0\r\n\r\n")
    kept = await ask(pool)
    assert (kept.data, kept.flushes) == (b"abcd", 2)


# --- what is no reply -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nxx",
    ],
)
async def test_what_is_not_http_has_failed(
    server: Server, pool: ConnectionPool, reply: bytes
) -> None:
    server.answers(reply, 5.0)
    with pytest.raises(UpstreamFailed):
        await asyncio.wait_for(ask(pool), 2)
    await asyncio.wait_for(server.left.wait(), 2)


@pytest.mark.parametrize(
    "line", [b"x: " + b"y" * 4096 + b"\r\n", b"x: y\r\n" * 800, b"y" * 4096], ids=repr
)
async def test_a_head_that_does_not_end_has_failed(
    server: Server, pool: ConnectionPool, line: bytes
) -> None:
    pieces = HEAD_BYTES_MAX // len(line) + 60
    server.answers(b"HTTP/1.1 200 OK\r\nx: y\r\n", *[line] * pieces, 5.0)
    with pytest.raises(UpstreamFailed):
        await asyncio.wait_for(ask(pool), 2)


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"HTTP/1.1 20",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        OK[:-1],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
async def test_a_reply_that_is_cut_has_failed(
    server: Server, pool: ConnectionPool, part: bytes
) -> None:
    server.answers(part, None)
    with pytest.raises(UpstreamFailed):
        await ask(pool)
    assert len(server.requests) == 1


async def test_an_answer_too_many_is_nobodys(server: Server, pool: ConnectionPool) -> None:
    server.answers(OK + b"HTTP/1.1 500 No\r\ncontent-length: 4\r\n\r\nevil")
    kept = await ask(pool)
    assert kept.data == b"hello"
    assert [head.status for head in kept.heads] == [200]
    assert (await ask(pool)).data == b"hello"
    assert server.connections == 2


async def test_an_answer_that_nobody_asked_for_ends_its_connection(
    server: Server, pool: ConnectionPool
) -> None:
    server.answers(OK, 0.02, b"HTTP/1.1 500 No\r\ncontent-length: 4\r\n\r\nevil")
    assert (await ask(pool)).data == b"hello"
    await asyncio.wait_for(server.left.wait(), 2)
    kept = await ask(pool)
    assert (kept.data, server.connections) == (b"hello", 2)


# --- a reply that is over before its message ----------------------------------------------------


BEFORE_THE_END = CHUNKED + b"1\r\na\r\n"
END = b"0\r\n\r\n"


async def test_who_asked_does_not_wait_for_the_end_of_a_message_that_matters_no_more(
    server: Server, pool: ConnectionPool
) -> None:
    server.answers(BEFORE_THE_END, 5.0)
    kept = await ask(pool, Satisfied())
    assert kept.data == b"a"
    assert not server.left.is_set()  # its connection may be of use again


async def test_a_connection_serves_nobody_before_its_message_has_ended(
    server: Server, pool: ConnectionPool
) -> None:
    server.answers(BEFORE_THE_END, 0.1, END)
    first = await ask(pool, Satisfied())
    assert (await ask(pool)).data == b"hello"
    assert server.requests == [1, 2]

    await message_ended(first)
    assert (await ask(pool)).data == b"hello"
    await asyncio.sleep(END_SECONDS_MAX * 1.2)  # when it would have been given up
    server.answers(0.02, OK)
    assert [kept.data for kept in await asyncio.gather(ask(pool), ask(pool))] == [b"hello"] * 2
    assert (server.connections, server.requests[2], first.data) == (2, 1, b"a")


@pytest.mark.parametrize("rest", [b"", b"5\r\nhello\r\n"])
async def test_a_connection_whose_message_does_not_end_is_closed(
    server: Server, pool: ConnectionPool, rest: bytes
) -> None:
    server.answers(BEFORE_THE_END, 0.1, rest, 5.0, END)
    kept = await ask(pool, Satisfied())
    await asyncio.wait_for(server.left.wait(), END_SECONDS_MAX * 4)
    assert kept.data == b"a"


@pytest.mark.parametrize(
    "rest",
    [
        [None],
        [b"zz\r\n", 5.0],
        [END + b"HTTP/1.1 500 No\r\ncontent-length: 4\r\n\r\nevil", 5.0],
    ],
    ids=["closed", "no HTTP", "more than its end"],
)
async def test_a_connection_whose_message_ends_badly_is_not_used_again(
    server: Server, pool: ConnectionPool, rest: list[bytes | float | None]
) -> None:
    server.answers(BEFORE_THE_END, 0.05, *rest)
    await message_ended(await ask(pool, Satisfied()))
    assert (await ask(pool)).data == b"hello"
    assert server.requests == [1, 2]


async def test_a_pool_that_closes_waits_for_no_end(server: Server, pool: ConnectionPool) -> None:
    server.answers(BEFORE_THE_END, 5.0)
    await ask(pool, Satisfied())
    await pool.close()
    await asyncio.wait_for(server.left.wait(), END_SECONDS_MAX / 2)


async def test_a_client_that_is_slow_with_the_last_of_its_reply_does_not_stop_the_next_one(
    server: Server, pool: ConnectionPool
) -> None:
    connection = (await ask(pool)).connection
    assert connection is not None
    connection.pause_reading()

    assert (await asyncio.wait_for(ask(pool), 2)).data == b"hello"
    assert server.requests == [1, 1]


async def message_ended(kept: Kept) -> None:
    """Its connection is between two messages, or closed."""
    assert kept.connection is not None
    async with asyncio.timeout(2):
        while kept.connection.done is not None:  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.005)


class Satisfied(Kept):
    """Wants no more than the first of the body."""

    def body(self, data: bytes) -> None:
        super().body(data)
        assert self.connection is not None
        self.connection.end_early()


# --- back-pressure ----------------------------------------------------------------------------


async def test_a_paused_connection_stops_reading(server: Server, pool: ConnectionPool) -> None:
    kept = Kept()
    size = 20_000_000

    def pause() -> None:
        assert kept.connection is not None
        kept.connection.pause_reading()
        kept.connection.pause_reading()

    kept.on_body = pause
    server.answers(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size, b"x" * size)
    task = asyncio.create_task(ask(pool, kept))
    await asyncio.sleep(0.1)
    assert 0 < len(kept.data) < 2_000_000

    kept.on_body = lambda: None
    assert kept.connection is not None
    kept.connection.resume_reading()
    kept.connection.resume_reading()
    await task
    assert len(kept.data) == size


async def test_a_connection_goes_back_to_the_pool_reading(
    server: Server, pool: ConnectionPool
) -> None:
    kept = Kept()

    def pause() -> None:
        assert kept.connection is not None
        kept.connection.pause_reading()

    kept.on_body = pause
    await ask(pool, kept)
    assert (await asyncio.wait_for(ask(pool), 2)).data == b"hello"
    assert server.connections == 1


async def test_what_is_abandoned_ends_with_its_reason(server: Server, pool: ConnectionPool) -> None:
    kept = Kept()
    reason = UpstreamFailed("enough")

    def abandon() -> None:
        assert kept.connection is not None
        kept.connection.abandon(reason)

    kept.on_body = abandon
    server.answers(OK[:-1], 5.0)
    with pytest.raises(UpstreamFailed, match="enough"):
        await ask(pool, kept)
    await asyncio.wait_for(server.left.wait(), 1)
