"""The access log: one JSON line for each request, never with content or a secret.

Lines are encoded as they come, some at a time; kept as structs they would be four times as large.
Every half second, or sooner where many have come, a thread appends them to the file. So a crash
loses half a second of lines: the log is for operators, what was charged is in the ledger. A disk
that refuses loses lines too, and they are counted; it must not hold up requests.
"""

import asyncio
import contextlib
import datetime
import fcntl
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from tollway.metrics.counters import Metrics

FLUSH_SECONDS = 0.5
LINES_AT_ONCE = 1024
"""About 350 KiB: each batch costs a thread's turn, 0.3 ms."""
LINES_WAITING_MAX = 65_536
FILE_BYTES_MAX = 64 * 1024 * 1024

STANDARD_OUTPUT = "-"

log = logging.getLogger("tollway.access")

_encode_lines = msgspec.json.Encoder().encode_lines


class AccessLine(Struct, gc=False, omit_defaults=True):
    """What does not apply to a request is left out of its line. `kind` and `status` are as in the
    metric `tollway_requests_total`; `ended` is how a request that held credit ended; `error` is the
    code that the client was told, `client_left` where it had left. Times of day are UTC."""

    time: datetime.datetime
    request_id: str
    kind: str
    status: int
    address: str
    total_ms: float
    account: str | None = None
    token: str | None = None
    model: str | None = None
    ended: str | None = None
    error: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    source: str | None = None
    credits: int | None = None
    shortfall: int = 0
    first_token_ms: float | None = None
    upstream: str | None = None
    attempts: int = 1
    client_request_id: str | None = None


class AccessLog:
    """`target` is a file, relative to the data directory, `-` for the standard output, or empty for
    no log at all. Starts a file anew past 64 MiB and keeps the one before it, as `NAME.1`."""

    def __init__(self, target: str, data_dir: Path, metrics: Metrics) -> None:
        self.enabled = target != ""
        self._to_stdout = target == STANDARD_OUTPUT
        self._path = data_dir / target
        self._metrics = metrics
        self.before_writing: list[Callable[[], None]] = []
        """Called before what has come is written: whoever has lines yet to append does it."""
        self._data: list[bytes] = []
        self._waiting = 0  # lines, in `_data`
        self._many = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._refusing = False

    async def start(self) -> None:
        if self.enabled:
            self._task = asyncio.create_task(self._run(), name="tollway-access-log")

    async def stop(self) -> None:
        """Returns when every line is written."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        await self._flush()

    def append(self, line: AccessLine) -> None:
        self.extend((line,))

    def extend(self, lines: Sequence[AccessLine]) -> None:
        self._data.append(_encode_lines(lines))
        self._waiting += len(lines)
        if self._waiting > LINES_WAITING_MAX:
            self._metrics.access_lines_lost += self._waiting
            self._take_all()
        elif self._waiting >= LINES_AT_ONCE:
            self._many.set()

    def _take_all(self) -> tuple[bytes, int]:
        taken = b"".join(self._data), self._waiting
        self._data, self._waiting = [], 0
        return taken

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._many.wait()
            self._many.clear()
            # Once begun, a batch is written to its end: a stop must neither lose nor repeat it.
            await asyncio.shield(self._flush())

    async def _flush(self) -> None:
        async with self._writing:
            for append in self.before_writing:
                append()
            data, lines = self._take_all()
            if not lines:
                return
            try:
                await asyncio.to_thread(self._write, data)
            except OSError as error:
                self._metrics.access_lines_lost += lines
                if not self._refusing:
                    log.warning("The access log cannot be written: %s", error)
                self._refusing = True
            else:
                self._refusing = False

    def _write(self, data: bytes) -> None:
        if self._to_stdout:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        self._make_room(len(data))
        # Opened for each batch, so that a rotation by the system's own tool is followed at once.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)

    def _make_room(self, size: int) -> None:
        if not self._is_full(size):
            return
        # Another worker may see the same, and put a log that has just begun in the old one's place.
        with self._path.with_name(self._path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._is_full(size):
                self._path.replace(self._path.with_name(self._path.name + ".1"))

    def _is_full(self, size: int) -> bool:
        try:
            present = self._path.stat().st_size
        except FileNotFoundError:
            return False
        return bool(present) and present + size > FILE_BYTES_MAX


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        _take_back(descriptor, len(data) - len(rest))
        raise


def _take_back(descriptor: int, written: int) -> None:
    """On a full disk the last line may be half a one, and the next would go on in its middle. What
    another worker has appended to stays."""
    with contextlib.suppress(OSError):  # a pipe has no end to take from
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        if os.fstat(descriptor).st_size == end:
            os.ftruncate(descriptor, end - written)
