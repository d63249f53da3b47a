"""The HTTP client against a real server: raw bytes for what HTTP allows, the fake upstream for what
takes its time."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tollway.deadlines import Deadlines
from tollway.errors import ConfigurationError, Unavailable, UpstreamFailed, UpstreamTimeout
from tollway.upstreams.connection import (
    HEAD_BYTES_MAX,
    Connection,
    ConnectionPool,
    ResponseHead,
)

REQUEST = b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
SOON = Deadlines(connect=0.5, first_byte=0.1, between_chunks=0.1, total=0.3)

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request by the next of `answers`: bytes, a number of seconds to wait, or None to
    close."""

    def __init__(self) -> None:
        self.script: list[list[bytes | float | None]] = []
        self.connections = 0
        self.requests: list[int] = []
        self.left = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", 0, ssl=tls, limit=16 * 1024 * 1024
        )
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def answers(self, *steps: bytes | float | None) -> None:
        self.script.append(list(steps))

    def close_all(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        number = self.connections
        try:
            while await reader.readuntil(b"\r\n\r\nhi"):
                self.requests.append(number)
                steps = self.script.pop(0) if self.script else [OK]
                for step in steps:
                    if step is None:
                        return
                    if isinstance(step, bytes):
                        writer.write(step)
                        await writer.drain()
                    else:
                        await self._wait(step, reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        except asyncio.CancelledError:  # the test is over; asyncio would log it
            return
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _wait(self, seconds: float, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), seconds)


class Kept:
    """A `Receiver` that keeps what it got."""

    def __init__(self) -> None:
        self.heads: list[ResponseHead] = []
        self.data = b""
        self.flushes = 0
        self.connection: Connection | None = None
        self.on_body: Callable[[], None] = lambda: None

    def head(self, head: ResponseHead, connection: Connection) -> None:
        self.heads.append(head)
        self.connection = connection

    @property
    def status(self) -> int:
        return self.heads[-1].status if self.heads else 0

    def whole(self, head: ResponseHead, body: bytes, connection: Connection) -> None:
        self.head(head, connection)
        self.body(body)
        self.flush()

    def body(self, data: bytes) -> None:
        self.data += data
        self.on_body()

    def flush(self) -> None:
        self.flushes += 1

    def chunks(self, data: bytes) -> None:
        self.body(data)
        self.flush()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def pool(server: Server) -> AsyncIterator[ConnectionPool]:
    pool = ConnectionPool(f"http://127.0.0.1:{server.port}/v1")
    yield pool
    await pool.close()


@pytest.fixture
async def quick(server: Server) -> AsyncIterator[ConnectionPool]:
    pool = ConnectionPool(f"http://127.0.0.1:{server.port}/v1", SOON)
    yield pool
    await pool.close()


async def ask(pool: ConnectionPool, kept: Kept | None = None) -> Kept:
    kept = kept or Kept()
    await pool.request(lambda: REQUEST, kept)
    return kept


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


# --- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "gpu-1:8000",
        "ftp://gpu-1/",
        "http://",
        "http://user:secret@gpu-1/v1",
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
    assert (await ask(pool)).heads == [ResponseHead(429, b"text/event-stream", b"7")]


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
    assert pool.in_flight == 0


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
    await asyncio.sleep(0.05)
    kept = await ask(pool)
    assert (kept.data, server.connections) == (b"hello", 2)


# --- the pool ---------------------------------------------------------------------------------


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
    task = asyncio.create_task(ask(pool))
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (await ask(pool)).data == b"hello"
    assert server.requests == [1, 2]
    assert pool.in_flight == 0


def test_a_request_that_is_cancelled_as_it_connects_leaves_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uvloop closes it then and does not say so."""

    async def open_afterwards() -> int:
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
        return pool.in_flight

    assert uvloop.run(open_afterwards()) == 0


async def test_cancelling_closes_the_connection(server: Server, pool: ConnectionPool) -> None:
    server.answers(CHUNKED, *[b"1\r\na\r\n", 0.01] * 500)
    task = asyncio.create_task(ask(pool))
    await asyncio.sleep(0.03)
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


# --- where it connects to ---------------------------------------------------------------------


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
    with pytest.raises(Unavailable, match="its operator finds why in the log"):
        await ask(pool)
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


async def test_closing_the_pool_ends_what_runs(server: Server, pool: ConnectionPool) -> None:
    server.answers(OK[:-1], 5.0)
    task = asyncio.create_task(ask(pool))
    await asyncio.sleep(0.03)
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
    assert quick.in_flight == 0


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


# --- TLS --------------------------------------------------------------------------------------


def certificate_for(host: str, folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


async def over_tls(certificate: Path) -> Server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server()
    await server.start(context)
    return server


async def test_tls_is_spoken_with_a_server_whose_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certificate_for("127.0.0.1", tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = await over_tls(certificate)
    pool = ConnectionPool(f"https://127.0.0.1:{server.port}/v1")
    for _ in range(2):
        assert (await ask(pool)).data == b"hello"
    assert server.connections == 1
    await pool.close()
    await server.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"], ids=["unknown", "another's"])
async def test_a_server_whose_certificate_is_not_to_be_trusted_is_sent_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    certificate = certificate_for(host, tmp_path)
    if host != "127.0.0.1":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = await over_tls(certificate)
    pool = ConnectionPool(f"https://127.0.0.1:{server.port}/v1")
    with pytest.raises(Unavailable):
        await ask(pool)
    assert server.requests == []
    await pool.close()
    await server.stop()
