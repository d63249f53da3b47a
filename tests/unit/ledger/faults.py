"""A disk that fails where a test says, below the ledger and above SQLite's own code."""

import asyncio
import errno
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from tollway.database.journal import Ballast, Journal
from tollway.database.sqlite import SqliteDatabase, connect

RETRY_SECONDS = 0.02
BALLAST_BYTES = 64 * 1024

Failure = Literal[
    "begin refused",  # an I/O error, a read-only file
    "insert finds no room",
    "commit lost",
    "commit landed and its answer was lost",
]
FAILURES: tuple[Failure, ...] = get_args(Failure)


class Disk:
    """`failure` is of the database's file; `journal_error` of the journal, `no_room` of the
    ballast. While `commits` is not set a COMMIT takes as long, once it has `begun` one."""

    def __init__(self) -> None:
        self.commits = threading.Event()
        self.commits.set()
        self.begun = threading.Event()
        self.failure: Failure | None = None
        self.journal_error: int | None = None
        self.no_room = False
        self._refused = threading.Event()

    def mend(self) -> None:
        self.__init__()

    async def has_refused_again(self) -> None:
        """When the writer has tried once more, in vain."""
        self._refused.clear()
        assert await asyncio.to_thread(self._refused.wait, 10), "nothing was tried"

    def failed(self, code: int, message: str) -> sqlite3.OperationalError:
        self._refused.set()
        error = sqlite3.OperationalError(message)
        error.sqlite_errorcode = code
        return error

    def check_room(self) -> None:
        if self.no_room:
            self._refused.set()
            raise OSError(errno.ENOSPC, "No space left on device")

    def database(self, path: Path) -> SqliteDatabase:
        return SqliteDatabase(
            path,
            connect_writer=self._connect,
            journal=Journal(path.with_name("journal"), fsync=self._fsync),
            ballast=_Ballast(path.with_name("ballast"), self.check_room),
            retry_seconds=RETRY_SECONDS,
        )

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = connect(path, _Connection)
        assert isinstance(connection, _Connection)
        connection.disk = self
        return connection

    def _fsync(self, descriptor: int) -> None:
        if self.journal_error is not None:
            raise OSError(self.journal_error, os.strerror(self.journal_error))
        os.fsync(descriptor)


class _Ballast(Ballast):
    def __init__(self, path: Path, check_room: Callable[[], None]) -> None:
        super().__init__(path, BALLAST_BYTES)
        self._check_room = check_room

    def make(self) -> None:
        self._check_room()
        super().make()


class _Connection(sqlite3.Connection):
    disk: Disk | None = None

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        if self.disk is not None and self.disk.failure == "insert finds no room":
            raise self.disk.failed(sqlite3.SQLITE_FULL, "database or disk is full")
        return super().executemany(sql, parameters)

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if self.disk is None:
            return super().execute(sql, *parameters)
        failure = self.disk.failure
        if sql == "BEGIN IMMEDIATE" and failure == "begin refused":
            raise self.disk.failed(sqlite3.SQLITE_IOERR, "disk I/O error")
        if sql.startswith("INSERT") and failure == "insert finds no room":
            raise self.disk.failed(sqlite3.SQLITE_FULL, "database or disk is full")
        if sql == "COMMIT":
            self.disk.begun.set()
            self.disk.commits.wait(10)
        if sql == "COMMIT" and failure == "commit lost":
            raise self.disk.failed(sqlite3.SQLITE_IOERR, "disk I/O error")
        cursor = super().execute(sql, *parameters)
        if sql == "COMMIT" and failure == "commit landed and its answer was lost":
            raise self.disk.failed(sqlite3.SQLITE_IOERR, "disk I/O error")
        return cursor


async def mended(database: SqliteDatabase) -> None:
    """When the writer has found that it can write again, and the loop has heard of it."""
    async with asyncio.timeout(10):
        heard = asyncio.Event()
        database.on_mended(heard.set)
        if database.fault is not None:
            await heard.wait()
    await database.execute(("PRAGMA user_version = 0", ()))
