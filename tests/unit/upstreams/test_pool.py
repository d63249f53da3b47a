"""The pool against a real server: which connection a request gets, and how long it may take."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator

import pytest
import uvloop
from tests.unit.upstreams.raw_server import CHUNKED, OK, REQUEST, Kept, Server, ask, begin

from tollway.deadlines import Deadlines
from tollway.errors import Unavailable, UpstreamFailed, UpstreamTimeout
from tollway.upstreams import pool as pool_module
from tollway.upstreams.connection import Connection
from tollway.upstreams.pool import ConnectionPool

SOON = Deadlines(
    connect_seconds=0.5, first_byte_seconds=0.1, between_chunks_seconds=0.1, total_seconds=0.3
)


@pytest.fixture
async def quick(server: Server) -> AsyncIterator[ConnectionPool]:
    pool = ConnectionPool(f"http://127.0.0.1:{server.port}/v1", SOON)
    yield pool
    await pool.close()


async def test_requests_at_the_same_time_have_their_own_connections(
    server: Server, pool: ConnectionPool
) -> None:
    for _ in range(3):
        server.answers(0.05, OK)
    await asyncio.gather(*(ask(pool) for _ in range(3)))
    assert sorted(server.requests) == [1, 2, 3]


async def test_a_connection_whose_reply_is_unfinished_is_not_used_again(
    server: Server, pool: ConnectionPool
) -> None:
    server.answers(OK[:-1], 5.0)
    task = await begin(pool)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (await ask(pool)).data == b"hello"
    assert server.requests == [1, 2]


def test_a_request_that_is_cancelled_as_it_connects_leaves_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uvloop closes it then and does not say so."""

    async def connections_kept() -> int:
        before = kept(Connection)
        server = Server()
        await server.start()
        pool = ConnectionPool(f"http://127.0.0.1:{server.port}")
        made = Connection.connection_made

        def cancelled(connection: Connection, transport: asyncio.BaseTransport) -> None:
            made(connection, transport)
            asked.cancel()

        monkeypatch.setattr(Connection, "connection_made", cancelled)
        asked = asyncio.create_task(ask(pool))
        with pytest.raises(asyncio.CancelledError):
            await asked
        await server.stop()
        return kept(Connection) - before

    assert uvloop.run(connections_kept()) == 0


def kept(kind: type) -> int:
    """How many anybody still has. No pool says so, for it gives out only live connections."""
    gc.collect()
    return sum(type(one) is kind for one in gc.get_objects())


async def until_kept(count: int, kind: type) -> None:
    async with asyncio.timeout(2):
        while kept(kind) > count:  # noqa: ASYNC110 (nobody is told of what is freed)
            await asyncio.sleep(0.05)  # a loop that did nothing but count would seem to be stopped


async def test_cancelling_closes_the_connection(server: Server, pool: ConnectionPool) -> None:
    server.answers(CHUNKED, *[b"1\r\na\r\n", 0.01] * 500)
    task = await begin(pool)
    task.cancel()
    await asyncio.wait_for(server.left.wait(), 1)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_connection_that_was_closed_while_idle_is_found_out_unseen(
    server: Server, pool: ConnectionPool
) -> None:
    for _ in range(5):
        await ask(pool)
        server.close_all()
        assert (await ask(pool)).data == b"hello"


async def test_a_stale_connection_is_tried_again_once(server: Server, pool: ConnectionPool) -> None:
    await ask(pool)
    server.answers(None)
    assert (await ask(pool)).data == b"hello"
    assert server.requests == [1, 1, 2]

    server.answers(None)
    server.answers(None)
    with pytest.raises(UpstreamFailed):
        await ask(pool)
    assert server.requests == [1, 1, 2, 2, 3]


async def test_a_server_that_closes_each_connection_at_once_is_not_tried_for_ever(
    server: Server, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Connection.connection_made

    def closed(connection: Connection, transport: asyncio.BaseTransport) -> None:
        made(connection, transport)
        connection.abort()

    monkeypatch.setattr(Connection, "connection_made", closed)
    before = kept(Connection)
    with pytest.raises(UpstreamFailed, match="closed the connection"):
        await asyncio.wait_for(ask(pool), 2)
    await until_kept(before, Connection)


async def test_a_connection_that_its_server_closes_while_idle_is_forgotten(
    server: Server, pool: ConnectionPool
) -> None:
    before = kept(Connection)
    await ask(pool)
    server.close_all()
    await until_kept(before, Connection)


async def test_a_connection_that_its_server_closes_takes_no_place_of_one_that_is_kept(
    server: Server, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "IDLE_CONNECTIONS_MAX", 1)
    server.answers(OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    server.answers(0.05, OK)
    await asyncio.gather(ask(pool), ask(pool))
    await ask(pool)
    assert server.connections == 2


async def test_a_connection_that_is_idle_for_long_is_closed(
    server: Server, quick: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "IDLE_SECONDS_MAX", 0.05)
    await ask(quick)
    await asyncio.wait_for(server.left.wait(), 2)


async def test_a_reply_that_ends_while_its_client_is_slow_holds_up_no_other(
    server: Server, pool: ConnectionPool
) -> None:
    slow = Kept()

    def pause() -> None:
        assert slow.connection is not None
        slow.connection.pause_reading()

    slow.on_body = pause
    await ask(pool, slow)
    assert (await asyncio.wait_for(ask(pool), 2)).data == b"hello"
    assert server.connections == 1


async def test_more_idle_connections_than_are_kept_are_closed(
    server: Server, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "IDLE_CONNECTIONS_MAX", 1)
    server.answers(0.05, OK)
    server.answers(0.05, OK)
    await asyncio.gather(ask(pool), ask(pool))
    await asyncio.wait_for(server.left.wait(), 2)
    await ask(pool)
    assert server.connections == 2


async def test_a_reply_that_had_begun_is_never_asked_for_again(
    server: Server, pool: ConnectionPool
) -> None:
    await ask(pool)
    server.answers(b"HTTP/1.1", None)
    with pytest.raises(UpstreamFailed):
        await ask(pool)
    assert server.requests == [1, 1]


async def test_a_server_that_is_not_there_is_unavailable(server: Server) -> None:
    await server.stop()
    pool = ConnectionPool(f"http://127.0.0.1:{server.port}/v1")
    with pytest.raises(Unavailable) as refused:
        await ask(pool)
    assert refused.value.retry_after_seconds is not None
    assert not refused.value.was_sent


async def test_a_server_that_is_not_there_is_named_in_the_log_once_a_minute(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await server.stop()
    pool = ConnectionPool(f"http://127.0.0.1:{server.port}/v1")

    for _ in range(3):
        with pytest.raises(Unavailable):
            await ask(pool)

    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith(f"no connection to 127.0.0.1:{server.port}: ")
    assert told.endswith("Does the server run, and is base_url right?")


async def test_closing_the_pool_ends_what_runs(server: Server, pool: ConnectionPool) -> None:
    server.answers(OK[:-1], 5.0)
    task = await begin(pool)
    await pool.close()
    with pytest.raises(UpstreamFailed):
        await task


# --- deadlines --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([5.0], "did not answer"),
        ([b"HTTP/1.1 200 OK\r\n", 5.0], "fell silent"),
        ([OK[:-1], 5.0], "fell silent"),
        (
            [CHUNKED, *[b"1\r\na\r\n", 0.02] * 99],
            "did not finish",
        ),
    ],
    ids=["nothing", "half a head", "half a body", "for ever"],
)
async def test_a_server_that_takes_too_long_is_left(
    server: Server, quick: ConnectionPool, steps: list[bytes | float | None], said: str
) -> None:
    server.answers(*steps)
    with pytest.raises(UpstreamTimeout, match=said):
        await asyncio.wait_for(ask(quick), 2)
    await asyncio.wait_for(server.left.wait(), 2)


async def test_a_requests_own_deadline_is_looked_at_as_often_as_it_needs(
    server: Server, pool: ConnectionPool
) -> None:
    await ask(pool)  # from here on the pool looks once a second, as its own deadlines need
    server.answers(5.0)
    own = Deadlines(first_byte_seconds=0.05)
    with pytest.raises(UpstreamTimeout, match=r"within 0\.05 s"):
        await asyncio.wait_for(pool.request(lambda: REQUEST, Kept(), own), 0.8)


async def test_a_request_may_have_less_time_to_connect_than_others(server: Server) -> None:
    own = Deadlines(connect_seconds=0.0)
    pool = ConnectionPool(f"http://127.0.0.1:{server.port}/v1")
    with pytest.raises(UpstreamTimeout, match="did not accept a connection within 0 s"):
        await pool.request(lambda: REQUEST, Kept(), own)


async def test_a_server_that_is_silent_within_its_event_is_looked_at_as_often_as_it_needs(
    server: Server,
) -> None:
    pool = ConnectionPool(
        f"http://127.0.0.1:{server.port}/v1", Deadlines(between_chunks_seconds=0.05)
    )
    server.answers(CHUNKED, 5.0)
    with pytest.raises(UpstreamTimeout, match="fell silent"):
        await asyncio.wait_for(ask(pool), 0.8)


async def test_what_comes_while_the_gateway_is_stopped_is_not_overdue(
    server: Server, quick: ConnectionPool
) -> None:
    server.answers(0.05, OK)
    stops_for_seconds = 0.2
    asyncio.get_running_loop().call_later(0.01, time.sleep, stops_for_seconds)
    assert (await ask(quick)).data == b"hello"

    server.answers(5.0)
    with pytest.raises(UpstreamTimeout):  # it goes on to look
        await asyncio.wait_for(ask(quick), 2)


async def test_a_slow_stream_that_goes_on_is_not_left(
    server: Server, quick: ConnectionPool
) -> None:
    server.answers(
        CHUNKED,
        *[b"1\r\na\r\n", 0.03] * 6,
        b"0\r\n\r\n",
    )
    assert (await ask(quick)).data == b"a" * 6


async def test_a_client_that_is_slow_is_not_the_servers_fault(
    server: Server, quick: ConnectionPool
) -> None:
    kept = Kept()

    def pause_once() -> None:
        assert kept.connection is not None
        kept.connection.pause_reading()
        asyncio.get_running_loop().call_later(0.2, kept.connection.resume_reading)
        kept.on_body = lambda: None

    kept.on_body = pause_once
    server.answers(OK[:-1], 0.01, OK[-1:])
    assert (await ask(quick, kept)).data == b"hello"


async def test_a_look_at_the_deadlines_leaves_idle_connections_alone(
    server: Server, quick: ConnectionPool
) -> None:
    server.answers(0.02, OK)
    server.answers(5.0)
    ends = await asyncio.gather(ask(quick), ask(quick), return_exceptions=True)
    assert {type(end) for end in ends} == {Kept, UpstreamTimeout}
    assert (await ask(quick)).data == b"hello"
    assert server.connections == 2


async def test_a_pool_that_is_closed_is_forgotten(server: Server) -> None:
    before = kept(ConnectionPool)
    pool = ConnectionPool(f"http://127.0.0.1:{server.port}/v1", SOON)
    await ask(pool)
    await pool.close()
    del pool
    await until_kept(before, ConnectionPool)
