"""The SQLite file: one process owns it, one thread writes it (`writer.py`), and many writes share
one fsync. Two threads read it, each in snapshots of what has been committed."""

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

from tollway.database.base import Row, Statement
from tollway.database.data_directory import AS_THE_SERVER
from tollway.database.journal import Ballast, Journal
from tollway.database.migrate import migrate_sqlite
from tollway.database.writer import RETRY_SECONDS, Filing, Work, Writer, is_environment
from tollway.errors import StartError, Unavailable

_PAGE_CACHE_KIB = 8192
_LOG_PAGES = 4000
"""After which the log (16 MB) is written back into the file, each page once: with 300 accounts a
third of what it is at SQLite's 1,000."""
_LOOK_INSTRUCTIONS = 100_000
"""Of SQLite's, after which a read looks whether it is to be broken off: about a millisecond."""

T = TypeVar("T")

log = logging.getLogger("tollway.database")

Connect = Callable[[Path], sqlite3.Connection]


class SqliteDatabase:
    """Implements `Database`; `submit` is for the SQLite ledger, whose settlements come in thousands
    a second. Journal and ballast lie beside the file. `connect_writer` is how the writer gets its
    connections: a test of a failing disk gives its own."""

    def __init__(
        self,
        path: Path,
        *,
        connect_writer: Connect | None = None,
        journal: Journal | None = None,
        ballast: Ballast | None = None,
        retry_seconds: float = RETRY_SECONDS,
        on_commit: Callable[[int, float], None] | None = None,
    ) -> None:
        """`on_commit` is told on the writer's thread of each commit: how many pieces of work, and
        its seconds."""
        self.path = path
        self._connect = partial(connect if connect_writer is None else connect_writer, path)
        self._journal = Journal(path.with_name("journal")) if journal is None else journal
        self._ballast = Ballast(path.with_name("ballast")) if ballast is None else ballast
        self._writer = Writer(self._connect, self._journal, self._ballast, retry_seconds)
        if on_commit is not None:
            self._writer.on_commit = on_commit
        self.submit: Callable[[Work], None] = self._writer.put
        """Queues; cannot be lost to a cancelled task. The work's future resolves when it is on
        disk."""
        self._closing = False
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="tollway-read")
        self._reader = threading.local()
        self._connections: list[sqlite3.Connection] = []

    def open(self) -> None:
        """Migrates, then starts the writer thread. The caller holds the lock of the data
        directory."""
        try:
            self.path.touch(0o600)
            try:
                migrate_sqlite(self.path)
            except sqlite3.OperationalError:  # on a full disk there is no room for the -shm file
                if not self._ballast.drop():
                    raise
                migrate_sqlite(self.path)
        except (OSError, sqlite3.DatabaseError) as error:
            raise _unopened(self.path, _first(error)) from error
        self._writer.start(asyncio.get_running_loop())

    async def close(self) -> None:
        """Reads are broken off: `ledger verify` may have minutes to go."""
        await asyncio.to_thread(self._writer.stop)
        self._closing = True
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._connections:
            connection.close()

    @property
    def fault(self) -> str | None:
        """Why not everything that was promised is in the database; None while it is."""
        return self._writer.fault

    def on_mended(self, listener: Callable[[], None]) -> None:
        """Called on the event loop whenever a fault has ended."""
        self._writer.mended_listeners.append(listener)

    async def recover(self, apply: Callable[[sqlite3.Connection, list[bytes]], T]) -> T:
        """Runs `apply` with the records of the journal, in one transaction, then empties the
        journal.

        At the start, before anything else is written: what `apply` does must leave out what is
        there already, for a crash may have come between commit and emptying. Raises `StartError`
        where the database cannot be written.
        """
        return await asyncio.to_thread(self._recover, apply)

    def _recover(self, apply: Callable[[sqlite3.Connection, list[bytes]], T]) -> T:
        try:
            records = self._journal.read()
            try:
                result = self._transact(apply, records)
            except sqlite3.OperationalError:
                if not self._ballast.drop():
                    raise
                result = self._transact(apply, records)
            self._journal.empty()
        except (OSError, sqlite3.DatabaseError) as error:
            raise StartError(
                f"The database {self.path} cannot be written: {error}. What was charged and waits "
                "in the journal beside it is kept. Make it writable and start again."
            ) from error
        except msgspec.DecodeError as error:
            raise StartError(
                f"What a crash left in {self.path} or in the journal beside it cannot be read: "
                f"{error}. It is kept. Start the version of Tollway that wrote it, and stop that "
                "before an upgrade."
            ) from error
        self._writer.make_ballast()
        return result

    def _transact(
        self, apply: Callable[[sqlite3.Connection, list[bytes]], T], records: list[bytes]
    ) -> T:
        connection = self._connect()
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = apply(connection, records)
            connection.execute("COMMIT")
            return result
        finally:
            connection.close()

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return await self.read(lambda connection: connection.execute(sql, parameters).fetchall())

    def file(self, filing: Filing) -> None:
        """Before anything is written."""
        self._writer.filing = filing

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `query` in a reader thread, in one snapshot."""
        if self._writer.filing.waits:
            with contextlib.suppress(Unavailable):  # what can be read may be read all the same
                await self.execute()
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
                connection.set_progress_handler(lambda: self._closing, _LOOK_INSTRUCTIONS)
                self._reader.connection = connection
                self._connections.append(connection)
            connection.execute("BEGIN")
            try:
                return query(connection)
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            if not is_environment(error):
                raise
            log.error("The database cannot be read: %s", error)
            raise Unavailable("The database cannot be read now. Try again later.") from error


def _unopened(path: Path, why: BaseException) -> StartError:
    code = getattr(why, "sqlite_errorcode", None)
    mend = "Look at the disk and at the rights of the folder."
    if code == sqlite3.SQLITE_CANTOPEN or isinstance(why, PermissionError):
        mend = f"{AS_THE_SERVER}."
    return StartError(f"The database {path} cannot be opened: {why}. {mend}")


def _first(error: BaseException) -> BaseException:
    """Of a migration that failed: SQLite may have rolled back by itself, and then whoever does it
    after that says that there is nothing to roll back."""
    while isinstance(error.__context__, sqlite3.DatabaseError):
        error = error.__context__
    return error


def connect(
    path: Path, factory: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=512,
        factory=factory,
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA busy_timeout = 5000")
    # Where it is on (Debian's library has it so), pages are zeroed and written once more when what
    # was on them is deleted: for charges that were filed (ledger/charges.py) an eighth of the
    # writer's instructions, and twice the pages.
    connection.execute("PRAGMA secure_delete = OFF")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    connection.execute(f"PRAGMA cache_size = -{_PAGE_CACHE_KIB}")
    return connection


class _Statements:
    """One `execute`: its statements belong together. Of none: all that waits is filed."""

    may_wait: ClassVar[bool] = False
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
