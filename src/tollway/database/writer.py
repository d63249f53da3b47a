"""The thread that writes a SQLite file, and what it does when the file cannot be written.

It takes all that has queued, applies it in order in one transaction, commits (`synchronous=FULL`:
on disk), and only then resolves each piece's future on the event loop. Under load it gathers before
each commit, because a commit costs 0.1 ms of CPU however much is in it, and tiny batches fight the
event loop for Python's interpreter lock (93 us a request instead of 51, measured). It waits for as
many pieces as the last batch had, for at most `GATHER_SECONDS_MAX`. A lone write waits only right
behind a large batch, where it may be the first of another.

A piece of work that breaks a constraint must not take its neighbours along: the batch is rolled
back and applied again piece by piece.

Some work may be put on disk in short form first and into its tables later, by the hundred
(`Filing`). That is done when enough of it waits, when nothing has come for `FILE_IDLE_SECONDS`, and
always before anything else is written or read: so nobody but the writer ever sees that it waited.

    well ──── the disk or the file refuses a batch ────► at fault
      ▲                                                     │ every `RETRY_SECONDS`
      └── ballast made, journal applied, journal emptied ◄──┘

At fault, work that has a `record` (settlements) goes to the journal, and is durable there: its
future resolves. All other work is refused with `Unavailable`. On a full disk the ballast is given
up first, to the journal alone: a database that tried again would use the room up and still fail.
Where not even the journal can be written, settlements wait in memory, unanswered, until something
can.

A COMMIT that failed may have reached the disk all the same, so what is applied from the journal is
applied by `apply_again`, which leaves out what is there.
"""

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeGuard, TypeVar

from tollway.database.inbox import Inbox
from tollway.database.journal import Ballast, Journal, is_disk_full
from tollway.errors import Refused, TollwayError, Unavailable

GATHER_SECONDS_EACH = 0.0005
"""For each piece of the last batch."""
GATHER_SECONDS_MAX = 0.004
STRAGGLERS_SECONDS = 0.0002
"""For those right behind: without, no batch would be larger than the last."""
RETRY_SECONDS = 0.5
FILE_IDLE_SECONDS = 0.25

# What the disk and the file can be at fault for; SQLITE_ERROR and the like are ours.
_ENVIRONMENT_CODES = frozenset(
    {
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)

log = logging.getLogger("tollway.database")


class Work(Protocol):
    """Something to write. Consecutive pieces of one type are handed to its `apply` together."""

    future: asyncio.Future[Any]
    may_wait: ClassVar[bool]
    """Whether it can be committed while earlier work still waits to be filed (`Filing`)."""

    @staticmethod
    def apply(connection: sqlite3.Connection, batch: Sequence[Any]) -> list[Any]:
        """Writes the batch, in order, and returns a result for each. Runs in the writer thread,
        within a transaction."""
        ...

    @staticmethod
    def rolled_back(batch: Sequence[Any]) -> None:
        """What `apply` remembered of this batch is no longer so."""
        ...


class KeptWork(Work, Protocol):
    """Work that was promised and must not be lost: it can be written to the journal instead."""

    @property
    def result(self) -> Any:
        """What its future resolves to once it is in the journal."""
        ...

    def record(self) -> bytes:
        """All that `apply_again` needs, as JSON without line breaks."""
        ...

    @staticmethod
    def apply_again(connection: sqlite3.Connection, batch: Sequence[Any]) -> list[Any]:
        """As `apply`, for what may have been applied before."""
        ...


class Filing(Protocol):
    """Work that is on disk in short form, and not in its tables yet. For the writer's thread, but
    for `waits`, which any thread may look at: as long as somebody who reads would not find all that
    was told, and so while it is on its way into its tables too."""

    waits: bool

    def begin(self, connection: sqlite3.Connection, *, alone: bool) -> None:
        """A transaction has begun. `alone`: it has nothing but work that may wait, so that what
        waits may go on waiting, and more with it. Otherwise all is filed now."""
        ...

    def committed(self) -> None:
        """What `begin` and the work behind it did is on disk, and nobody has been told yet."""
        ...

    def rolled_back(self) -> None:
        """What was remembered of the last transaction is no longer so, or may be."""
        ...


class _NothingWaits:
    """A `Filing` for who has none."""

    waits = False

    def begin(self, connection: sqlite3.Connection, *, alone: bool) -> None:
        pass

    def committed(self) -> None:
        pass

    def rolled_back(self) -> None:
        pass


W = TypeVar("W", bound=Work)


class Writer:
    """`fault` is why not everything that was promised is in the database, None while it is."""

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        journal: Journal,
        ballast: Ballast,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._connect = connect
        self._journal = journal
        self._ballast = ballast
        self._queue: Inbox[Work | _Signal] = Inbox()
        self._thread = threading.Thread(target=self._run, name="tollway-write", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: sqlite3.Connection | None = None
        self._journaled: list[KeptWork] = []
        self._waiting: list[KeptWork] = []
        self._retry_seconds = retry_seconds
        self._retry_at = 0.0
        self.fault: str | None = None
        self.on_commit: Callable[[int, float], None] = _ignore
        """Told on the writer's thread of each commit: how many pieces, and its seconds. Set it
        before `start`."""
        self.filing: Filing = _NothingWaits()
        """Set it before `start`."""
        self.mended_listeners: list[Callable[[], None]] = []
        """Called on the event loop, after the answers to whatever was refused."""
        self.put: Callable[[Work], None] = self._queue.put

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue.open()
        self._thread.start()

    def stop(self) -> None:
        """Returns when everything queued before has been written, journaled or refused."""
        if self._thread.is_alive():
            self._queue.put(_STOP)
            self._thread.join()
        self._queue.close()

    def make_ballast(self) -> None:
        """Where there is no room for it, the writer is at fault until there is."""
        try:
            self._ballast.make()
        except OSError as error:
            self._declare_fault(error)
            self._queue.put(_WAKE)

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        last = 0
        stopping = False
        while not stopping:
            batch = self._take(last)
            stopping = _STOP in batch
            work = [piece for piece in batch if not isinstance(piece, _Signal)]
            last = len(work)
            try:
                self._handle(work, stopping=stopping)
                if self.filing.waits and self.fault is None and (stopping or not work):
                    self._file()
            except Exception as error:  # top of the thread: every piece must get its answer
                log.critical("The writer failed on a fault of the program.", exc_info=error)
                self._answer([(piece, None, error) for piece in work])
        self._abandon()
        unavailable = Unavailable("Tollway was stopped before this could be written.")
        for piece in self._waiting:
            log.critical("could be written nowhere, and is lost: %s", piece.record().decode())
        self._answer([(piece, None, unavailable) for piece in self._waiting])

    def _take(self, last: int) -> list["Work | _Signal"]:
        wait_seconds = -1.0
        if self.fault is not None:
            wait_seconds = max(0.0, self._retry_at - time.monotonic())
        elif self.filing.waits:
            wait_seconds = FILE_IDLE_SECONDS
        if last > 1:
            self._gather(last)
        if not self._queue:  # under load there is something by now, and nobody had to wake us
            began = time.monotonic()
            self._queue.wait(1, wait_seconds)
            if last > 1 and time.monotonic() - began < GATHER_SECONDS_MAX:  # the first of as many
                self._gather(last)
        return self._queue.take_all()

    def _gather(self, last: int) -> None:
        """Until there is as much as last time, and a moment for more; or for as long as allowed."""
        self._queue.wait(last, min(GATHER_SECONDS_MAX, last * GATHER_SECONDS_EACH))
        if self._queue:
            time.sleep(STRAGGLERS_SECONDS)

    def _handle(self, work: list[Work], *, stopping: bool) -> None:
        if self.fault is None:
            self._write(work)
        else:
            self._keep(work)
        if self.fault is not None and (stopping or time.monotonic() >= self._retry_at):
            self._mend()

    def _write(self, batch: list[Work]) -> None:
        if not batch:
            return
        try:
            results = self._commit(batch)
        except Exception as error:  # noqa: BLE001 (each piece gets it as its answer, or another try)
            if is_environment(error):
                self._declare_fault(error)
                self._keep(batch)
            elif len(batch) > 1:
                for piece in batch:
                    self._handle([piece], stopping=False)
            else:
                self._answer([(batch[0], None, _as_refusal(batch[0], error))])
            return
        self._answer([(w, r, None) for w, r in zip(batch, results, strict=True)])

    def _file(self) -> None:
        try:
            self._commit(())
        except Exception as error:
            if is_environment(error):
                self._declare_fault(error)
            else:
                log.critical(
                    "What waits cannot be filed, on a fault of the program.", exc_info=error
                )

    def _commit(self, batch: Sequence[Work]) -> list[Any]:
        results: list[Any] = []
        applied: list[tuple[type[Work], list[Work]]] = []
        try:
            began = time.monotonic()
            connection = self._begin()
            runs = _runs(batch)
            alone = bool(runs) and all(kind.may_wait for kind, _ in runs)
            self.filing.begin(connection, alone=alone)
            for kind, run in runs:
                applied.append((kind, run))
                results += kind.apply(connection, run)
            connection.execute("COMMIT")
            self.filing.committed()
        except BaseException:
            self._roll_back(applied)
            raise
        if batch:
            self.on_commit(len(batch), time.monotonic() - began)
        return results

    def _begin(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def _roll_back(self, applied: Sequence[tuple[type[Work], Sequence[Work]]]) -> None:
        for kind, run in applied:
            kind.rolled_back(run)
        self.filing.rolled_back()
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
        self._abandon()

    def _abandon(self) -> None:
        """After a failed commit a connection's state is not to be trusted: the next one is new."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    # --- at fault ---------------------------------------------------------------------------------

    def _declare_fault(self, error: Exception) -> None:
        log.error("The database cannot be written: %s. New requests are refused.", error)
        self.fault = str(error)
        self._retry_at = time.monotonic() + self._retry_seconds
        if _is_full(error):
            self._ballast.drop()

    def _keep(self, batch: Sequence[Work]) -> None:
        unavailable = Unavailable("The database cannot be written now. Try again later.")
        refused: list[Work] = []
        for piece in batch:
            if _is_kept(piece):
                self._waiting.append(piece)
            else:
                refused.append(piece)
        self._answer([(piece, None, unavailable) for piece in refused])
        self._journal_waiting()

    def _journal_waiting(self) -> None:
        if not self._waiting:
            return
        records = [piece.record() for piece in self._waiting]
        try:
            self._append(records)
        except OSError as error:
            log.critical("The journal cannot be written: %s. Charges wait in memory.", error)
            return
        self._journaled += self._waiting
        self._answer([(piece, piece.result, None) for piece in self._waiting])
        self._waiting = []

    def _append(self, records: list[bytes]) -> None:
        try:
            self._journal.append(records)
        except OSError as error:
            if not (is_disk_full(error) and self._ballast.drop()):
                raise
            self._journal.append(records)

    def _mend(self) -> None:
        kept = self._journaled + self._waiting
        try:
            self._ballast.make()
            self._commit_again(kept)
            self._journal.empty()
        except Exception as error:
            if not is_environment(error):
                log.exception("The journal cannot be applied, on a fault of the program.")
            if _is_full(error):
                self._ballast.drop()
            self._journal_waiting()
            self._retry_at = time.monotonic() + self._retry_seconds
            return
        log.warning("The database can be written again; %d charges had waited.", len(kept))
        self._answer([(piece, piece.result, None) for piece in self._waiting])
        self._journaled, self._waiting = [], []
        self.fault = None
        for listener in self.mended_listeners:
            self._tell_loop(listener)

    def _commit_again(self, batch: Sequence[KeptWork]) -> None:
        """Also where there is nothing to apply: the database must show that it can be written."""
        applied: list[tuple[type[KeptWork], list[KeptWork]]] = []
        try:
            connection = self._begin()
            self.filing.begin(connection, alone=False)
            for kind, run in _runs(batch):
                applied.append((kind, run))
                kind.apply_again(connection, run)
            connection.execute("PRAGMA user_version = 0")  # a page that is always written
            connection.execute("COMMIT")
            self.filing.committed()
        except BaseException:
            self._roll_back(applied)
            raise

    # --- answers ----------------------------------------------------------------------------------

    def _answer(self, outcomes: Sequence["_Outcome"]) -> None:
        if outcomes:
            self._tell_loop(_resolve, outcomes)

    def _tell_loop(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)


def _ignore(pieces: int, seconds: float) -> None:
    """Nobody counts the commits."""


class _Signal:
    """What the queue carries beside work."""


_STOP = _Signal()
_WAKE = _Signal()

_Outcome = tuple[Work, Any, BaseException | None]


def is_environment(error: BaseException) -> bool:
    """Whether the disk or the file is at fault, and not what was to be written."""
    if isinstance(error, OSError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _ENVIRONMENT_CODES  # the rest of it is detail


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return is_disk_full(error)
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _as_refusal(work: Work, error: Exception) -> Exception:
    if _is_kept(work):
        log.critical("could not be written: %s", work.record().decode(), exc_info=error)
        return error
    if isinstance(error, TollwayError):
        return error
    if isinstance(error, sqlite3.IntegrityError):
        return Refused(f"The database refused this: {error}.")
    log.error("A write failed on a fault of the program.", exc_info=error)
    return error


def _is_kept(work: Work) -> TypeGuard[KeptWork]:
    return hasattr(work, "record")


def _runs(batch: Sequence[W]) -> list[tuple[type[W], list[W]]]:
    runs: list[tuple[type[W], list[W]]] = []
    for work in batch:
        if runs and runs[-1][0] is type(work):
            runs[-1][1].append(work)
        else:
            runs.append((type(work), [work]))
    return runs


def _resolve(outcomes: Sequence[_Outcome]) -> None:
    for work, result, error in outcomes:
        future = work.future
        if future.done():  # its waiter was cancelled: the write stands all the same
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
            future.exception()  # read: a waiter that left does not make asyncio complain
