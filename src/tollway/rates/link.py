"""The link to Valkey: one connection, on which everything that replicas share goes as calls of one
script.

What is asked within one turn of the event loop, and while a call is on its way, goes out together
in the next call. A call costs this process some 60 us, and an operation in it about 2: the busier a
replica is, the less each request pays.

Nobody waits for a Valkey that hangs: a call that has no answer after a quarter of a second ends the
connection, and everything that waits is answered with None. Connecting again happens beside the
requests.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import msgspec
from valkey.asyncio import ConnectionPool
from valkey.exceptions import AuthenticationError, NoScriptError, ResponseError, ValkeyError

from tollway.errors import StartError

CALL_SECONDS_MAX = 0.25
GRACE_SECONDS = 0.02
CONNECT_SECONDS_MAX = 1.0
RECONNECT_SECONDS = 0.5
START_SECONDS_MAX = 5.0
OPERATIONS_AT_ONCE = 256
"""About a millisecond in Valkey, which others wait for."""

Operation = tuple[str | int, ...]
Answer = list[Any]
Ask = Callable[[Sequence[Operation]], Awaitable[list[Answer]]]

log = logging.getLogger("tollway.rates")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Answer]).decode


class Listener(Protocol):
    async def connected(self, server: str, ask: Ask) -> None:
        """Before anything else is asked on a new connection. `server` is another at each start of
        Valkey."""
        ...

    def fell(self) -> None: ...

    def called(self, seconds: float) -> None: ...


class _Connection(Protocol):
    """What is used of the client's connection, which has few types of its own."""

    async def connect(self) -> None: ...

    async def disconnect(self, _nowait: bool, /) -> None: ...

    async def send_command(self, *args: bytes | str | int) -> None: ...

    async def read_response(self) -> Any: ...


class Link:
    def __init__(
        self, url: str, script: str, replica: str, window_seconds: float, lease_seconds: float
    ) -> None:
        pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
            url, socket_timeout=None, client_name="tollway", lib_name=None, lib_version=None
        )
        self._make_connection = cast("Callable[[], _Connection]", pool.make_connection)
        self._script = script
        self._sha = ""
        self._terms = (replica, round(window_seconds * 1e6), round(lease_seconds * 1e6))
        self._connection: _Connection | None = None
        self._waiting: list[tuple[Operation, asyncio.Future[Answer | None] | None]] = []
        self._sent: list[tuple[Operation, asyncio.Future[Answer | None] | None]] = []
        self._asleep: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self.up = False

    async def start(self, listener: Listener, seconds_max: float) -> None:
        """Raises `StartError` where Valkey cannot be used: how many replicas there are, and so what
        this one's share would be, is known from it alone."""
        self._listener = listener
        deadline = time.monotonic() + seconds_max
        while True:
            try:
                await self._connect()
                break
            except _TROUBLE as error:
                await self._disconnect()
                # What it answers, it will answer again.
                refused = isinstance(error, AuthenticationError | ResponseError)
                if refused or time.monotonic() > deadline:
                    raise _unusable(error) from error
            await asyncio.sleep(RECONNECT_SECONDS)
        self._task = asyncio.create_task(self._run(), name="tollway-rates")

    async def probe(self) -> str:
        """The name and version of the server, where it can be used; nothing is counted. Raises
        `StartError`."""
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                server = await self._open()
                await self._run_script(_encode((*self._terms, [])))
        except _TROUBLE as error:
            raise _unusable(error) from error
        finally:
            await self._disconnect()
        return server.name

    async def stop(self) -> None:
        """What was told before still arrives, if Valkey answers."""
        if self._task is None:
            return
        if self.up:
            await self.ask(("leave",))
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._disconnect()
        self._answer_none()

    def ask(self, operation: Operation) -> asyncio.Future[Answer | None]:
        """The answer is None where there is none: Valkey is down, or has just gone."""
        future = asyncio.get_running_loop().create_future()
        if self.up:
            self._put(operation, future)
        else:
            future.set_result(None)
        return future

    def tell(self, operation: Operation) -> None:
        """Arrives before what is asked later, or not at all."""
        if self.up:
            self._put(operation, None)

    def _put(self, operation: Operation, future: asyncio.Future[Answer | None] | None) -> None:
        self._waiting.append((operation, future))
        if self._asleep is not None:
            self._asleep.set_result(None)
            self._asleep = None

    # --- the connection ---------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                if not self.up:
                    await self._connect()
                await self._converse()
            except _TROUBLE as error:
                await self._fall(error)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _connect(self) -> None:
        assert self._listener is not None
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            server = await self._open()
        await self._listener.connected(server.run_id, self._call)
        self.up = True

    async def _open(self) -> "_Server":
        self._connection = self._make_connection()
        await self._connection.connect()
        server = _server_of(await self._command("INFO"))
        self._sha = await self._command("SCRIPT LOAD", self._script)
        return server

    async def _converse(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                self._asleep = loop.create_future()
                await self._asleep
            self._sent = self._waiting[:OPERATIONS_AT_ONCE]
            del self._waiting[:OPERATIONS_AT_ONCE]
            answers = await self._call([operation for operation, _ in self._sent])
            for (_, future), answer in zip(self._sent, answers, strict=True):
                if future is not None and not future.done():
                    future.set_result(answer)
            self._sent = []

    async def _call(self, operations: Sequence[Operation]) -> list[Answer]:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        batch = _encode((*self._terms, operations))
        began = time.perf_counter()
        async with asyncio.timeout(None) as deadline:
            # The grace is for an answer that is there, and was not read because this process was
            # kept from running.
            timer = loop.call_later(
                CALL_SECONDS_MAX, lambda: deadline.reschedule(loop.time() + GRACE_SECONDS)
            )
            try:
                reply = await self._run_script(batch)
            finally:
                timer.cancel()
        self._listener.called(time.perf_counter() - began)
        return _decode(reply)

    async def _run_script(self, batch: bytes) -> bytes:
        try:
            return await self._command("EVALSHA", self._sha, 0, batch)
        except NoScriptError:  # somebody flushed the scripts
            self._sha = await self._command("SCRIPT LOAD", self._script)
            return await self._command("EVALSHA", self._sha, 0, batch)

    async def _command(self, *words: bytes | str | int) -> Any:
        assert self._connection is not None
        await self._connection.send_command(*words)
        return await self._connection.read_response()

    async def _fall(self, error: Exception) -> None:
        assert self._listener is not None
        if self.up:
            self.up = False
            log.error(
                "the rate store has gone, each replica keeps to its share: %s", _reason(error)
            )
            self._listener.fell()
        self._answer_none()
        await self._disconnect()

    def _answer_none(self) -> None:
        for _, future in (*self._sent, *self._waiting):
            if future is not None and not future.done():
                future.set_result(None)
        self._sent, self._waiting = [], []

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(ValkeyError, OSError):
                await connection.disconnect(True)


_TROUBLE = (ValkeyError, OSError, TimeoutError, msgspec.DecodeError)


@dataclass(frozen=True, slots=True)
class _Server:
    """`run_id` is another at each start."""

    name: str
    run_id: str


def _server_of(info: bytes) -> _Server:
    """Raises `ResponseError` where it cannot be used, or it could not be told when."""
    facts = dict(
        line.split(":", 1) for line in info.decode("utf-8", "replace").splitlines() if ":" in line
    )
    if facts.get("cluster_enabled") == "1":
        raise ResponseError(
            "it is a cluster, which spreads what one script must see together. Name a server that "
            "is not part of one"
        )
    if "run_id" not in facts:
        raise ResponseError("INFO does not tell its run_id, and so not whether it started anew")
    if facts.get("maxmemory", "0") != "0" and facts.get("maxmemory_policy") != "noeviction":
        log.warning(
            "The rate store may forget rates when its memory is full (maxmemory-policy %s). "
            "Set it to noeviction.",
            facts.get("maxmemory_policy"),
        )
    version = facts.get("valkey_version")
    name = f"redis {facts.get('redis_version')}" if version is None else f"valkey {version}"
    return _Server(name, facts["run_id"])


def _unusable(error: Exception) -> StartError:
    return StartError(f"The rate store cannot be used: {_reason(error)}. Check server.rate_store.")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer"
    return str(error).rstrip(".") or type(error).__name__
