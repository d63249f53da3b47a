"""The SQLite file: one process owns it, one thread writes it, and many writes share one fsync.

Whatever is to be written goes on a queue as `Work`. The writer thread takes all that has queued, applies it in order in one
transaction, commits (`synchronous=FULL`: on disk), and only then resolves each piece's future on the event loop. Under load
it gathers for `GATHER_SECONDS` before each commit, because tiny batches fight the event loop for Python's interpreter lock
(93 us a request instead of 51, measured); alone, a write does not wait for others.

A piece of work that breaks a constraint must not take its neighbours along: the batch is rolled back and applied again
piece by piece. A batch that the disk refuses fails whole, with `Unavailable`, and nothing of it was written.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tollway.database.base import Row, Statement
from tollway.database.migrate import migrate_sqlite
from tollway.errors import Refused, StartError, TollwayError, Unavailable

GATHER_SECONDS = 0.0015
LOCK_WAIT_SECONDS = 5.0
_PAGE_CACHE_KIB = 8192

T = TypeVar("T")

log = logging.getLogger("tollway.database")


class Work(Protocol):
    """Something to write. Consecutive pieces of one type are handed to its `apply` together."""

    future: asyncio.Future[Any]

    @staticmethod
    def apply(connection: sqlite3.Connection, batch: Sequence[Any]) -> list[Any]:
        """Writes the batch, in order, and returns a result for each. Runs in the writer thread, within a transaction."""
        ...

    @staticmethod
    def rolled_back(batch: Sequence[Any]) -> None:
        """What `apply` remembered of this batch is no longer so."""
        ...


class DataDirectoryLock:
    """One process at a time has a data directory. The operating system gives the lock back when the process dies."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "tollway.lock"
        self._file: int | None = None

    def acquire(self, wait_seconds: float = LOCK_WAIT_SECONDS) -> None:
        """Raises `StartError` when another process still has it after `wait_seconds`."""
        deadline = time.monotonic() + wait_seconds
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    owner = os.read(descriptor, 32).decode(errors="replace").strip()
                    os.close(descriptor)
                    raise StartError(
                        f"Another Tollway (process {owner or 'unknown'}) uses the data directory "
                        f"{self._path.parent}. Stop it, or give this one its own with --data-dir."
                    ) from None
                time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._file = descriptor

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class SqliteDatabase:
    """Implements `Database`; `submit` is for the SQLite ledger, whose settlements come in thousands a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = _Writer(path)
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="tollway-read")
        self._reader = threading.local()
        self._connections: list[sqlite3.Connection] = []

    def open(self) -> None:
        """Migrates, then starts the writer thread. The caller holds the lock of the data directory."""
        self.path.touch(0o600)
        try:
            migrate_sqlite(self.path)
        except sqlite3.DatabaseError as error:
            raise StartError(f"The database {self.path} cannot be opened: {error}.") from error
        self._writer.start(asyncio.get_running_loop())

    async def close(self) -> None:
        await asyncio.to_thread(self._writer.stop)
        self._readers.shutdown()
        for connection in self._connections:
            connection.close()

    def submit(self, work: Work) -> None:
        """Queues; cannot be lost to a cancelled task. `work.future` resolves when it is on disk."""
        self._writer.put(work)

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return await self.read(lambda connection: connection.execute(sql, parameters).fetchall())

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `query` in a reader thread, in one snapshot."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._run_query, query)

    async def execute(self, *statements: Statement) -> int:
        work = _Statements(statements, asyncio.get_running_loop().create_future())
        self.submit(work)
        return await work.future

    def _run_query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = getattr(self._reader, "connection", None)
            if connection is None:
                connection = connect(self.path)
                connection.execute("PRAGMA query_only = ON")
                self._reader.connection = connection
                self._connections.append(connection)
            connection.execute("BEGIN")
            try:
                return query(connection)
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            raise Unavailable(f"The database cannot be read: {error}.") from error


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.execute(f"PRAGMA cache_size = -{_PAGE_CACHE_KIB}")
    return connection


class _Statements:
    """One `execute`: its statements belong together."""

    __slots__ = ("future", "statements")

    def __init__(self, statements: Sequence[Statement], future: asyncio.Future[Any]) -> None:
        self.statements = statements
        self.future = future

    @staticmethod
    def apply(connection: sqlite3.Connection, batch: Sequence["_Statements"]) -> list[int]:
        changed: list[int] = []
        for work in batch:
            cursor = None
            for sql, parameters in work.statements:
                cursor = connection.execute(sql, parameters)
            changed.append(cursor.rowcount if cursor is not None else 0)
        return changed

    @staticmethod
    def rolled_back(batch: Sequence["_Statements"]) -> None:
        pass


class _Writer:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tollway-write", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: sqlite3.Connection | None = None
        self.put = self._queue.put

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Returns when everything queued before has been written or refused."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        busy = False
        while True:
            batch = [self._queue.get()]
            if busy:
                time.sleep(GATHER_SECONDS)
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(self._queue.get_nowait())
            stopping = None in batch
            work = [piece for piece in batch if piece is not None]
            busy = len(work) > 1
            if work:
                self._write(work)
            if stopping:
                break
        if self._connection is not None:
            self._connection.close()

    def _write(self, batch: list[Work]) -> None:
        outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]]
        try:
            results = self._commit(batch)
            outcomes = [(w.future, r, None) for w, r in zip(batch, results, strict=True)]
        except Exception as error:  # noqa: BLE001 (top of the writer thread: every piece must get its answer)
            if len(batch) > 1 and not _environment(error):
                for piece in batch:
                    self._write([piece])
                return
            refusal = _as_refusal(error)
            outcomes = [(piece.future, None, refusal) for piece in batch]
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(_resolve, outcomes)

    def _commit(self, batch: list[Work]) -> list[Any]:
        if self._connection is None:
            self._connection = connect(self._path)
        connection = self._connection
        results: list[Any] = []
        applied: list[tuple[type[Work], list[Work]]] = []
        connection.execute("BEGIN IMMEDIATE")
        try:
            for kind, run in _runs(batch):
                applied.append((kind, run))
                results += kind.apply(connection, run)
            connection.execute("COMMIT")
        except BaseException:
            for kind, run in applied:
                kind.rolled_back(run)
            self._abandon(connection)
            raise
        return results

    def _abandon(self, connection: sqlite3.Connection) -> None:
        """After a failed commit the connection's state is not to be trusted: the next batch opens a new one."""
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        with contextlib.suppress(sqlite3.Error):
            connection.close()
        self._connection = None


def _runs(batch: list[Work]) -> list[tuple[type[Work], list[Work]]]:
    runs: list[tuple[type[Work], list[Work]]] = []
    for work in batch:
        if runs and runs[-1][0] is type(work):
            runs[-1][1].append(work)
        else:
            runs.append((type(work), [work]))
    return runs


def _environment(error: BaseException) -> bool:
    """Whether the disk or the file is at fault, and not what was to be written."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError)
    )


def _as_refusal(error: Exception) -> Exception:
    if isinstance(error, TollwayError):
        return error
    if isinstance(error, sqlite3.IntegrityError):
        return Refused(f"The database refused this: {error}.")
    if _environment(error):
        log.error("The database could not be written: %s", error)
        return Unavailable(f"The database cannot be written: {error}.")
    log.exception("A write failed on a fault of the program.", exc_info=error)
    return error


def _resolve(outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    for future, result, error in outcomes:
        if future.done():  # its waiter was cancelled: the write stands all the same
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
            future.exception()  # read: a waiter that left does not make asyncio complain
