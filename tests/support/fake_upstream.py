"""A real local OpenAI-compatible server that plays back what a test scripts, and the oracle of
what it truly sent.

It runs in a thread with a loop of its own, so that synchronous tests, asynchronous tests and child
processes can all use it. Each request becomes an `Exchange`: what arrived, and, counted as the
kernel took the bytes, what was sent. A test compares the ledger with it.

    with FakeUpstream() as upstream:
        upstream.answer(stream(["Hel", "lo"], input_tokens=9))
        ...
        assert upstream.ended().content_tokens_sent == 2

An event counts as sent once its last byte was taken, and as started once its first was: where a
connection broke in the middle of an event, a peer may have made something of it or not. Bytes
taken by the kernel need not have been read by the peer. Without a script every request is answered
truthfully, or as its own `Directives` say.

As a process of its own, for tests that kill things:

    python -m tests.support.fake_upstream --port N --log FILE

prints the port it listens on, then appends one JSON line for each request when it ends (see
`Exchange.record`).
"""

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, Self

import h11
import msgspec
from tests.support.answers import (
    CREATED,
    Answer,
    Asked,
    Fault,
    FaultKind,
    Mark,
    Pause,
    Write,
    error,
    openai_error,
)
from tests.support.in_thread import ServerInThread

BrokenOff = Literal["cut", "reset"]
Ended = Literal["finished", "cut", "reset", "peer left", "stopped"]

READ_BYTES = 1 << 16
HEAD_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class Exchange:
    """One request and what became of it. Times are `time.monotonic()`; None where it has not
    happened."""

    number: int
    connection: int
    method: str
    path: str
    headers: list[tuple[str, str]]
    raw_body: bytes
    asked: Asked
    received_at: float
    received_wall: float
    bytes_sent: int = 0
    events_sent: int = 0
    content_tokens_sent: int = 0
    content_tokens_started: int = 0
    finish_sent: bool = False
    usages_sent: list[object] = field(default_factory=list[object])
    hanging: bool = False
    ended: Ended | None = None
    ended_at: float | None = None
    peer_left_at: float | None = None

    @property
    def body(self) -> dict[str, Any]:
        return self.asked.fields

    @property
    def finished(self) -> bool:
        return self.ended == "finished"

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name.lower()), None)

    def record(self) -> dict[str, object]:
        """The line of the log: all but the request's headers and bytes."""
        left_out = {"headers", "raw_body", "asked"}
        names = [item.name for item in dataclasses.fields(self) if item.name not in left_out]
        return {
            **{name: getattr(self, name) for name in names},
            "request_id": self.header("x-request-id"),
            "model": self.asked.model,
            "streamed": self.asked.streamed,
            "user": self.asked.fields.get("user"),
            "output_tokens_max": self.asked.output_tokens_max,
        }


class FakeUpstream(ServerInThread):
    """Use as a context manager. `answer` and its kin may be called at any time, from any thread."""

    def __init__(
        self,
        *,
        models: tuple[str, ...] = ("m1",),
        port: int = 0,
        on_end: Callable[[Exchange], None] | None = None,
    ) -> None:
        super().__init__()
        self.models = models
        self.port = port
        self._exchanges: list[Exchange] = []
        self.protocol_errors: list[str] = []
        self.connections_opened = 0
        self.connections_open = 0
        self._on_end = on_end
        self._broken: list[Exception] = []
        self._scripts: deque[_Script] = deque()
        self._changed = threading.Condition()
        self._connections: dict[_Connection, asyncio.Task[None]] = {}

    # --- life ---

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=4096)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        return super().__enter__()

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        if self._broken and raised == (None, None, None):
            raise self._broken[0]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    # --- the script ---

    def answer(
        self,
        answer: Answer,
        *,
        times: int | None = 1,
        model: str | None = None,
        path: str | None = None,
    ) -> None:
        """The next answer to a request (for that model, to a path that ends so); `times=None` for
        every one."""
        self.answer_with(lambda _: answer, times=times, model=model, path=path)

    def answer_with(
        self,
        choose: Callable[[Exchange], Answer],
        *,
        times: int | None = None,
        model: str | None = None,
        path: str | None = None,
    ) -> None:
        """As `answer`, but decided when the request is there; every time, unless `times` says how
        often."""
        with self._changed:
            self._scripts.append(_Script(choose, times, model, path))

    def forget_answers(self) -> None:
        with self._changed:
            self._scripts.clear()

    # --- what a test asks and does ---

    @property
    def exchanges(self) -> list[Exchange]:
        # Bytes are sent and counted under this lock: what a client has read by now is counted.
        with self._changed:
            return self._exchanges

    @property
    def last(self) -> Exchange:
        return self.exchanges[-1]

    def ended(self, index: int = -1, seconds: float = 5.0) -> Exchange:
        """The last request (or another), once its answer has ended in one way or another."""
        self.wait_until(lambda: len(self._exchanges) > max(index, 0), seconds)
        exchange = self._exchanges[index]
        self.wait_until(lambda: exchange.ended is not None, seconds)
        return exchange

    def wait_until(self, true: Callable[[], bool], seconds: float = 5.0) -> None:
        """Returns as soon as it holds. Blocks the thread: a test whose own loop must go on uses
        `until`."""
        with self._changed:
            if not self._changed.wait_for(true, seconds):
                raise AssertionError(f"not so within {seconds} s; requests: {self.exchanges}")

    async def until(self, true: Callable[[], bool], seconds: float = 5.0) -> None:
        await asyncio.to_thread(self.wait_until, true, seconds)

    def close_idle_connections(self) -> None:
        """As a server does that has waited long enough for another request."""
        self._loop.call_soon_threadsafe(self._end_idle)

    def stop_listening(self) -> None:
        """New connections are refused from now on; those that are open go on."""
        self._loop.call_soon_threadsafe(self._close_listener)

    # --- the server ---

    async def begin(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    async def end(self) -> None:
        self._close_listener()
        tasks = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._connections:  # those whose task had not begun
            connection.close()

    def _close_listener(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted, _ = self._listener.accept()
                with self._changed:
                    self.connections_opened += 1
                    self.connections_open += 1
                    self._changed.notify_all()
                connection = _Connection(accepted, self._loop, self.connections_opened)
                self._connections[connection] = self._loop.create_task(self._converse(connection))

    def _end_idle(self) -> None:
        for connection, task in self._connections.items():
            if connection.idle:
                task.cancel()

    async def _converse(self, connection: "_Connection") -> None:
        try:
            while exchange := await self._next_exchange(connection):
                answer = self._choose(exchange)
                kept = await self._play(answer, connection, exchange)
                if not kept:
                    return
        except _PeerLeftError:
            return
        except Exception as broken:  # noqa: BLE001 -- a script's own fault: the test is to see it
            self._broken.append(broken)
        finally:
            connection.close()
            del self._connections[connection]
            with self._changed:
                self.connections_open -= 1
                self._changed.notify_all()

    async def _next_exchange(self, connection: "_Connection") -> Exchange | None:
        try:
            request, body = await connection.next_request()
        except h11.RemoteProtocolError as wrong:
            with self._changed:
                self.protocol_errors.append(str(wrong))
                self._changed.notify_all()
            return None
        with self._changed:
            number = len(self._exchanges) + 1
            exchange = Exchange(
                number=number,
                connection=connection.number,
                method=request.method.decode(),
                path=request.target.decode("latin-1"),
                headers=[
                    (name.decode(), value.decode("latin-1")) for name, value in request.headers
                ],
                raw_body=body,
                asked=Asked(number, _parsed(body)),
                received_at=time.monotonic(),
                received_wall=time.time(),
            )
            self._exchanges.append(exchange)
            self._changed.notify_all()
        return exchange

    def _choose(self, exchange: Exchange) -> Answer:
        with self._changed:
            script = next((script for script in self._scripts if script.fits(exchange)), None)
            if script is not None and script.used_up():
                self._scripts.remove(script)
        return script.choose(exchange) if script else self._unscripted(exchange)

    def _unscripted(self, exchange: Exchange) -> Answer:
        if exchange.method == "GET" and exchange.path.endswith("/models"):
            return _model_list(self.models)
        if exchange.method != "POST" or not exchange.path.endswith("/chat/completions"):
            return openai_error(404, f"No route {exchange.method} {exchange.path}")
        if exchange.asked.body is None:
            return openai_error(400, "The body is not a JSON object.")
        try:
            return exchange.asked.directives().answer(exchange.asked)
        except msgspec.DecodeError as wrong:
            return openai_error(400, f"Directives of the fake upstream: {wrong}")

    async def _play(self, answer: Answer, connection: "_Connection", exchange: Exchange) -> bool:
        """Returns whether the connection may be used again."""
        ended: Ended = "stopped"
        try:
            fault = await _Player(answer, connection, exchange, self._changed).play()
            ended = fault or "finished"
            if fault == "reset":
                connection.reset_on_close()
        except _PeerLeftError:
            ended = "peer left"
            raise
        finally:
            self._end(exchange, ended, connection)
        return fault is None and not (answer.closes or answer.framing == "until-close")

    def _end(self, exchange: Exchange, ended: Ended, connection: "_Connection") -> None:
        with self._changed:
            exchange.ended = ended
            exchange.ended_at = time.monotonic()
            exchange.peer_left_at = connection.left_at
            exchange.hanging = False
            if self._on_end is not None:
                self._on_end(exchange)
            self._changed.notify_all()


@dataclass(slots=True)
class _Script:
    choose: Callable[[Exchange], Answer]
    times: int | None
    model: str | None
    path: str | None

    def fits(self, exchange: Exchange) -> bool:
        if self.model is not None and exchange.asked.model != self.model:
            return False
        return self.path is None or exchange.path.endswith(self.path)

    def used_up(self) -> bool:
        if self.times is None:
            return False
        self.times -= 1
        return self.times == 0


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        return None


def _model_list(models: tuple[str, ...]) -> Answer:
    data = [{"id": id, "object": "model", "created": CREATED, "owned_by": "fake"} for id in models]
    return error(200, {"object": "list", "data": data})


class _PeerLeftError(Exception):
    """The other side ended the connection, in good order or not."""


class _Connection:
    """A raw socket, always read so that the peer's leaving is seen at once, and written byte for
    byte."""

    def __init__(self, peer: socket.socket, loop: asyncio.AbstractEventLoop, number: int) -> None:
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = number
        self.left_at: float | None = None
        self.idle = True
        self._peer = peer
        self._loop = loop
        self._left = asyncio.Event()
        self._stirred = asyncio.Event()
        self._received = bytearray()
        loop.add_reader(peer, self._readable)

    async def next_request(self) -> tuple[h11.Request, bytes]:
        # h11 is strict about what a client sends. It is not used for answers, which must be able
        # to break any rule.
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        request: h11.Request | None = None
        body = bytearray()
        self.idle = True
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await self._more())
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                self._received[:0] = parser.trailing_data[0]
                return request, bytes(body)

    async def send(
        self, data: bytes, taken: Callable[[int], None], lock: threading.Condition
    ) -> None:
        """Tells `taken` how many bytes the kernel took, each time it does, under the same lock."""
        view = memoryview(data)
        while view:
            if self._left.is_set():
                raise _PeerLeftError
            try:
                with lock:
                    count = self._peer.send(view)
                    taken(count)
            except BlockingIOError:
                await self._writable()
                continue
            except OSError as gone:
                self._leave()
                raise _PeerLeftError from gone
            view = view[count:]

    async def hang(self) -> NoReturn:
        await self._left.wait()
        raise _PeerLeftError

    async def sleep(self, seconds: float) -> None:
        """Ends early when the peer leaves."""
        if seconds == 0:
            await asyncio.sleep(0)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._left.wait()
        if self._left.is_set():
            raise _PeerLeftError

    def reset_on_close(self) -> None:
        self._peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        self._loop.remove_reader(self._peer)
        self._loop.remove_writer(self._peer)
        self._peer.close()

    async def _more(self) -> bytes:
        while not self._received:
            if self._left.is_set():
                raise _PeerLeftError
            self._stirred.clear()
            await self._stirred.wait()
        self.idle = False
        data = bytes(self._received)
        self._received.clear()
        return data

    async def _writable(self) -> None:
        self._stirred.clear()
        self._loop.add_writer(self._peer, self._stirred.set)
        try:
            await self._stirred.wait()
        finally:
            self._loop.remove_writer(self._peer)

    def _readable(self) -> None:
        try:
            data = self._peer.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._leave()
            return
        self._received += data
        self._stirred.set()

    def _leave(self) -> None:
        if self._left.is_set():
            return
        self.left_at = time.monotonic()
        self._loop.remove_reader(self._peer)
        self._left.set()
        self._stirred.set()


class _Player:
    """Puts one answer on the wire and writes down what went."""

    def __init__(
        self,
        answer: Answer,
        connection: _Connection,
        exchange: Exchange,
        changed: threading.Condition,
    ) -> None:
        self._answer = answer
        self._connection = connection
        self._exchange = exchange
        self._changed = changed
        self._sizes = itertools.cycle(answer.piece_sizes or (sys.maxsize,))
        self._unstarted: deque[Mark] = deque()
        self._unsent: deque[Mark] = deque()

    async def play(self) -> BrokenOff | None:
        """Returns the fault that ended it, if one did. Raises _PeerLeftError."""
        for step in self._answer.steps(self._exchange.asked):
            if isinstance(step, Pause):
                await self._connection.sleep(step.seconds)
            elif isinstance(step, Fault):
                return await self._fail(step.kind)
            elif await self._write(step):
                assert self._answer.fault_at_byte is not None
                return await self._fail(self._answer.fault_at_byte[1])
        return None

    async def _fail(self, kind: FaultKind) -> BrokenOff:
        if kind != "hang":
            return kind
        with self._changed:
            self._exchange.hanging = True
            self._changed.notify_all()
        return await self._connection.hang()

    async def _write(self, write: Write) -> bool:
        """Returns whether the byte was reached at which this answer breaks."""
        here = self._exchange.bytes_sent
        marks = [mark.moved(here) for mark in write.marks]
        self._unstarted.extend(marks)
        self._unsent.extend(marks)
        stop = len(write.data)
        if self._answer.fault_at_byte is not None:
            stop = min(stop, self._answer.fault_at_byte[0] - here)
        for piece in self._pieces(write.data[:stop]):
            if self._answer.piece_pause_seconds or not write.at_once:
                await self._connection.sleep(self._answer.piece_pause_seconds)
            await self._connection.send(piece, self._taken, self._changed)
        return self._answer.fault_at_byte is not None and stop < len(write.data)

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        while data:
            size = next(self._sizes)
            yield data[:size]
            data = data[size:]

    def _taken(self, count: int) -> None:
        exchange = self._exchange
        exchange.bytes_sent += count
        while self._unstarted and self._unstarted[0].start < exchange.bytes_sent:
            exchange.content_tokens_started += self._unstarted.popleft().tokens
        while self._unsent and self._unsent[0].end <= exchange.bytes_sent:
            self._count(self._unsent.popleft())
        self._changed.notify_all()

    def _count(self, mark: Mark) -> None:
        self._exchange.events_sent += 1
        self._exchange.content_tokens_sent += mark.tokens
        self._exchange.finish_sent |= mark.terminal
        if mark.usage is not None:
            self._exchange.usages_sent.append(mark.usage)


# --- as a process ------------------------------------------------------------


class FakeUpstreamProcess:
    """The same server in a process of its own, which outlives whatever a test kills; `log` is what
    it wrote down."""

    def __init__(self, log: Path, *, port: int = 0) -> None:
        self.log = log
        self.port = port

    def __enter__(self) -> Self:
        command = [
            sys.executable,
            "-m",
            "tests.support.fake_upstream",
            "--port",
            str(self.port),
            "--log",
            str(self.log),
        ]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it; requests that are still being answered are written down as stopped."""
        with self._process:
            self._process.terminate()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def records(self) -> list[dict[str, Any]]:
        """Of the requests that have ended so far; all of them, once the process has."""
        lines = self.log.read_bytes().splitlines() if self.log.exists() else []
        return [msgspec.json.decode(line) for line in lines]


def main() -> None:
    options = argparse.ArgumentParser(prog="fake_upstream", description="A scripted upstream.")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--log", type=Path, required=True)
    chosen = options.parse_args()
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)  # before the thread: it inherits this
    with chosen.log.open("ab", buffering=0) as log:
        serving = FakeUpstream(port=chosen.port, on_end=lambda exchange: _append(log, exchange))
        with serving as upstream:
            sys.stdout.write(f"{upstream.port}\n")
            sys.stdout.flush()
            signal.sigwait(stopping)


def _append(log: BinaryIO, exchange: Exchange) -> None:
    # One write to a file opened for appending: a line is there whole or not at all, and survives
    # this process.
    log.write(msgspec.json.encode(exchange.record()) + b"\n")


if __name__ == "__main__":
    main()
