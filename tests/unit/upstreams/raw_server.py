"""A server that says the bytes it was told to, and what the HTTP client received of them."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable

from tollway.upstreams.connection import Connection, ResponseHead
from tollway.upstreams.pool import ConnectionPool

REQUEST = b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Server:
    """Answers each request by the next of `answers`: bytes, a number of seconds to wait, or None to
    close."""

    def __init__(self) -> None:
        self.script: list[list[bytes | float | None]] = []
        self.connections = 0
        self.requests: list[int] = []
        self.left = asyncio.Event()
        """The other side has closed a connection."""
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
        self.flushed = b""
        self.flushes = 0
        self.connection: Connection | None = None
        self.begun = asyncio.Event()
        self.on_body: Callable[[], None] = lambda: None

    def head(self, head: ResponseHead, connection: Connection) -> None:
        self.heads.append(head)
        self.connection = connection
        self.begun.set()

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
        self.flushed = self.data

    def chunks(self, data: bytes) -> None:
        self.body(data)
        self.flush()


async def ask(pool: ConnectionPool, kept: Kept | None = None) -> Kept:
    kept = kept or Kept()
    await pool.request(lambda: REQUEST, kept)
    return kept


async def begin(pool: ConnectionPool) -> asyncio.Task[Kept]:
    """A request whose reply has begun to come."""
    kept = Kept()
    task = asyncio.create_task(ask(pool, kept))
    await asyncio.wait_for(kept.begun.wait(), 2)
    return task
