"""The connections to one server: a request gets one that is idle, or a new one, made to an address
that may be connected to.

Deadlines are looked at by one sweep a pool, once in a while, so that a request needs no timer of
its own.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from tollway.deadlines import Deadlines
from tollway.errors import (
    ConfigurationError,
    RequestError,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from tollway.outbox import Outbox
from tollway.reach import refusal, refusal_of_host, written_out
from tollway.upstreams.complaints import Complaints
from tollway.upstreams.connection import (
    Connection,
    LearnedHeads,
    Receiver,
    Request,
    StaleConnection,
)

IDLE_CONNECTIONS_MAX = 256
IDLE_SECONDS_MAX = 60.0
SWEEP_SECONDS_MIN = 0.02

log = logging.getLogger("tollway.upstreams")


class ConnectionPool:
    """Connections to one base URL. Raises `ConfigurationError` for one that is not http:// or
    https://, or is at an address that nothing may be sent to (`tollway.reach`)."""

    def __init__(
        self,
        base_url: str,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 (frozen)
        *,
        allow_link_local: bool = False,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"base_url {base_url!r} must start with http:// or https://.")
        if parts.query or parts.fragment or parts.username or parts.password:
            raise ConfigurationError(
                f"base_url of {parts.hostname} must have no user, password, query or fragment."
            )
        if (why := refusal_of_host(parts.hostname, allow_link_local=allow_link_local)) is not None:
            raise ConfigurationError(f"base_url may not be at {parts.hostname}: {why}.")
        self._allow_link_local = allow_link_local
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.host = parts.hostname
        self._address = written_out(parts.hostname)
        self._looking_up: asyncio.Task[list[str]] | None = None
        self.port = parts.port or (443 if self._tls else 80)
        self.path = parts.path.rstrip("/")
        self.deadlines = deadlines
        self.host_header = parts.netloc
        self._complaints = Complaints()
        self._outbox = Outbox()
        self._heads = LearnedHeads()
        self._open: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        """Of the open ones, those that run no request."""
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_due = 0.0
        self._sweep_seconds = _sweep_seconds(deadlines)

    async def request(
        self,
        request: Callable[[], Request],
        receiver: Receiver,
        deadlines: Deadlines | None = None,
    ) -> None:
        """Sends and returns when the whole reply was received, or all that matters of it
        (`Connection.end_early`). Cancelling closes the connection. Without `deadlines` the pool's
        own count. `request` makes the bytes when there is a connection for them; once they are
        sent, they are not kept.

        A connection that the server closed while it was idle is found out only by using it: nothing
        was answered, so the request is sent again, once, on a new one.
        """
        if deadlines is None:
            deadlines = self.deadlines
        if deadlines is not self.deadlines:
            self._sweep_often_enough(deadlines)
        # The last one used is the least likely to have been closed meanwhile.
        connection = self._idle.pop() if self._idle else None
        is_new = False
        while True:
            if connection is None:
                connection, is_new = await self._connect(deadlines.connect_seconds), True
            try:
                await connection.exchange(request(), receiver, deadlines)
            except StaleConnection:
                if is_new:
                    raise UpstreamFailed(
                        "The model's server closed the connection without an answer. Try again."
                    ) from None
                connection = None
            except BaseException as error:
                connection.abort()
                if isinstance(error, RequestError):
                    error.upstream_status = receiver.status or None  # it had begun to answer
                raise
            else:
                if connection.paused_at:  # a client that was too slow is no matter of the next's
                    connection.resume_reading()
                if connection.done is None:
                    self._keep(connection)
                else:
                    connection.await_end(self._keep)
                return

    def _keep(self, connection: Connection) -> None:
        """For the next request: its last message has ended."""
        if connection.is_open and len(self._idle) < IDLE_CONNECTIONS_MAX:
            self._idle.append(connection)
        else:
            connection.abort()

    def _opened(self, connection: Connection) -> None:
        self._open.add(connection)
        if self._sweep is None:
            self._schedule_sweep()

    def _closed(self, connection: Connection) -> None:
        self._open.discard(connection)
        with contextlib.suppress(ValueError):  # it was not idle
            self._idle.remove(connection)

    async def close(self) -> None:
        for connection in list(self._open):
            connection.abort()

    async def _connect(self, seconds_max: float) -> Connection:
        try:
            async with asyncio.timeout(seconds_max):
                return await self._connect_to_any(await self._addresses())
        except TimeoutError:
            self._complain(f"none was accepted within {seconds_max:g} s")
            raise UpstreamTimeout(
                f"The model's server did not accept a connection within {seconds_max:g} s. Try "
                "again.",
                was_sent=False,
            ) from None
        except (OSError, UnicodeError) as error:  # the latter for a name that cannot be one
            # Of one that is closed in the middle of the handshake, uvloop says nothing.
            self._complain(getattr(error, "strerror", None) or str(error) or "it was closed")
            raise Unavailable(
                "The model's server cannot be reached. Try again in a moment.",
                retry_after_seconds=5,
                was_sent=False,
            ) from None

    def _complain(self, why: str) -> None:
        """The client is told no address, and nobody would learn which one was tried."""
        said = f"no connection to {self.host_header}: {why}. Does the server run, and is base_url"
        self._complaints.tell(logging.ERROR, "no connection", f"{said} right?")

    async def _addresses(self) -> list[str]:
        """What the host's name means now. Each is judged before anything is connected to, and one
        that is refused spoils them all: a name for a model's server has no business there.

        A resolver's thread is asked for names alone, and once for all who want to know at the same
        time: under load it waits 5 ms each time that it needs Python's lock, and a crowd of them
        for seconds (docs/decisions/0009)."""
        if self._address is not None:  # the configuration's own, which was judged
            return [self._address]
        if self._looking_up is None:
            self._looking_up = asyncio.create_task(self._look_up())
            self._looking_up.add_done_callback(self._looked_up)
        addresses = await asyncio.shield(self._looking_up)
        for address in addresses:
            why = refusal(address, allow_link_local=self._allow_link_local)
            if why is not None:
                log.error(
                    "the upstream's host %s is at %s: %s. Nothing is sent there",
                    self.host,
                    address,
                    why,
                )
                raise Unavailable(
                    "The model is not available: its operator finds why in the log.",
                    was_sent=False,
                )
        return addresses

    async def _look_up(self) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(info[4][0]) for info in found))

    def _looked_up(self, looking_up: asyncio.Task[list[str]]) -> None:
        self._looking_up = None
        if not looking_up.cancelled():
            looking_up.exception()  # those who asked may have left, and nobody else is to be told

    async def _connect_to_any(self, addresses: list[str]) -> Connection:
        """By address and not by name, which might be another's by now."""
        loop = asyncio.get_running_loop()
        for address in addresses:
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, self._outbox, self._heads, self._closed),
                    address,
                    self.port,
                    ssl=self._tls,
                    server_hostname=None if self._tls is None else self.host,
                )
            except OSError:
                if address == addresses[-1]:
                    raise
            else:
                # Not as soon as it is made: one that is cancelled just then uvloop closes without
                # a word.
                if connection.is_open:
                    self._opened(connection)
                return connection
        raise OSError(f"{self.host} has no address")

    def _sweep_often_enough(self, deadlines: Deadlines) -> None:
        """As often as the shortest deadlines ask for that this pool has been given."""
        seconds = _sweep_seconds(deadlines)
        if seconds < self._sweep_seconds:
            self._sweep_seconds = seconds
            if self._sweep is not None:
                self._sweep.cancel()
                self._schedule_sweep()

    def _schedule_sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep_due = loop.time() + self._sweep_seconds
        self._sweep = loop.call_later(self._sweep_seconds, self._look_at_deadlines)

    def _look_at_deadlines(self) -> None:
        self._sweep = None
        now = asyncio.get_running_loop().time()
        if now - self._sweep_due > self._sweep_seconds:
            # This process was stopped: what came meanwhile has not been read, and is not overdue.
            self._schedule_sweep()
            return
        for connection in list(self._open):
            if (late := connection.overdue(now)) is not None:
                connection.fail(UpstreamTimeout(late))
        while self._idle and now - self._idle[0].heard_at > IDLE_SECONDS_MAX:
            self._idle.popleft().abort()
        if self._open:
            self._schedule_sweep()


def _sweep_seconds(deadlines: Deadlines) -> float:
    shortest = min(
        deadlines.first_byte_seconds, deadlines.between_chunks_seconds, deadlines.total_seconds
    )
    return max(SWEEP_SECONDS_MIN, min(1.0, shortest / 4))
