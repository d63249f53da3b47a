"""How the ledger's operations reach Postgres: a few lanes, each a queue and a connection.

An account is always on the same lane, so its operations are done in the order in which they were
queued. A lane is self-clocked: while one batch is on its way the next one gathers, so that a busy
account's operations share a transaction and its fsync, and a lonely one waits for nothing. A batch
is one statement (`ledger_batch`): one round trip, and no lock that outlives it.

An answer that was lost with its connection says nothing about what was done. So the batch is sent
again, once, over a new connection; every operation can be done twice, and is done once.

    well ──── no connection brings a batch through ────► at fault
      ▲                                                     │ every `RETRY_SECONDS`
      └──────── journal applied, journal emptied ◄──────────┘

At fault, settlements go to the journal in the data directory, and are durable there: their clients
are answered. Everything else is refused with `Unavailable`.
"""

import asyncio
import contextlib
import logging
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from tollway.clock import Clock
from tollway.database.base import Row
from tollway.database.journal import Journal
from tollway.database.postgres import Connection, PostgresDatabase, is_unreachable, reason
from tollway.errors import Unavailable

LANES = 4
BATCH_MAX = 512
RETRY_SECONDS = 0.5
_JOURNAL_CHUNK = 500
_CALL = "SELECT * FROM ledger_batch($1, $2::json)"

log = logging.getLogger("tollway.ledger")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode

Operation = dict[str, Any]
"""What `ledger_batch` takes. Any: each of its kinds has other columns."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A row of `ledger_batch`: what came of an operation, and how its account stands after it."""

    number: int
    outcome: str
    granted: int | None
    paid: int | None
    unpaid: int | None
    balance: int | None
    held: int | None
    own_lease: int
    other_leases: int
    unanswered: int | None
    cap_spent: int | None
    cap_held: int | None

    @property
    def is_lost(self) -> bool:
        """There is no such account: another database was put in the place of the one that had
        it."""
        return self.outcome == "no account"


class Piece:
    """An operation under way. `kept`: it was promised, and what its future resolves to where only
    the journal has it."""

    __slots__ = ("future", "kept", "operation")

    def __init__(
        self, operation: Operation, future: asyncio.Future[Any], kept: Callable[[], Any] | None
    ) -> None:
        self.operation = operation
        self.future = future
        self.kept = kept


class Lanes:
    """`fault` is why not everything that was promised is in the database, None while it is."""

    def __init__(
        self,
        database: PostgresDatabase,
        journal: Journal,
        clock: Clock,
        instance_id: Callable[[], str],
        *,
        on_commit: Callable[[int, float], None] | None = None,
        retry_seconds: float = RETRY_SECONDS,
        lanes: int = LANES,
    ) -> None:
        self._database = database
        self._journal = journal
        self._clock = clock
        self._instance_id = instance_id
        self._on_commit = on_commit
        self._retry_seconds = retry_seconds
        self._lanes = [_Lane(self) for _ in range(lanes)]
        self._files = ThreadPoolExecutor(1, thread_name_prefix="tollway-journal")
        self._keeping = asyncio.Lock()
        self._journaled: list[Operation] = []
        self._waiting: list[Piece] = []
        self._mender: asyncio.Task[None] | None = None
        self.fault: str | None = None
        self.on_mended: Callable[[], None] = lambda: None
        self.round_trips = 0

    def start(self) -> None:
        for lane in self._lanes:
            lane.start()

    async def stop(self) -> None:
        """Returns when everything queued before has been written, journaled or refused."""
        for lane in self._lanes:
            await lane.stop()
        if self._mender is not None:
            self._mender.cancel()
            await asyncio.gather(self._mender, return_exceptions=True)
        for piece in self._waiting:
            log.critical("could be written nowhere, and is lost: %s", _record(piece.operation))
            _fail(piece, Unavailable("Tollway was stopped before this could be written."))
        self._files.shutdown()

    async def abandon(self) -> None:
        """As a process that dies: what is queued is forgotten."""
        for lane in self._lanes:
            await lane.abandon()
        if self._mender is not None:
            self._mender.cancel()
        self._files.shutdown()

    def put(
        self,
        account_id: str,
        operation: Operation,
        future: asyncio.Future[Any],
        kept: Callable[[], Any] | None = None,
    ) -> None:
        """Queues; cannot be lost to a cancelled task. The future resolves to the `Answer`, or to
        what `kept` gives where the journal has it."""
        self._lane_of(account_id).put(Piece(operation, future, kept))

    def _lane_of(self, account_id: str) -> "_Lane":
        return self._lanes[zlib.crc32(account_id.encode()) % len(self._lanes)]

    async def apply_journal(self) -> list[tuple[Operation, Answer]]:
        """At the start: what the journal of the process before has, and what came of it. What is of
        an account that is no more (the database was restored) is not among these, but in the log.
        Raises `Unavailable`."""
        loop = asyncio.get_running_loop()
        records = await loop.run_in_executor(self._files, self._journal.read)
        operations = [_decode(record) for record in records]
        done = await self._apply_kept(operations)
        await loop.run_in_executor(self._files, self._journal.empty)
        return [(operation, answer) for operation, answer in done if not answer.is_lost]

    # --- what a lane asks -------------------------------------------------------------------------

    async def call(self, connection: Connection, operations: Sequence[Operation]) -> list[Answer]:
        began = time.monotonic()
        batch = [{**operation, "n": number} for number, operation in enumerate(operations)]
        text = _encode(batch)
        if b"\\u0000" in text:  # or it says so in so many letters, which stay as they are
            text = _encode([_without_zero_bytes(operation) for operation in batch])
        rows: list[Row] = await connection.fetch(_CALL, self._instance_id(), text.decode())
        self.round_trips += 1
        if self._on_commit is not None:
            self._on_commit(len(operations), time.monotonic() - began)
        answers = [Answer(*row) for row in rows]
        answers.sort(key=_number)
        return answers

    async def connect(self) -> Connection:
        return await self._database.connect()

    # --- at fault ---------------------------------------------------------------------------------

    async def keep(self, pieces: Sequence[Piece], error: BaseException | None = None) -> None:
        """Settlements to the journal, everything else refused; where the fault has ended meanwhile
        the settlements are queued again."""
        if error is not None and self.fault is None:
            log.error(
                "The database cannot be reached: %s. New requests are refused.", reason(error)
            )
            self.fault = reason(error)
            self._mender = asyncio.create_task(self._mend())
        for piece in pieces:
            if piece.kept is None:
                _fail(piece, _unavailable())
        kept = [piece for piece in pieces if piece.kept is not None]
        if not kept:
            return
        async with self._keeping:
            if self.fault is None:
                for piece in reversed(kept):
                    self._lane_of(piece.operation["account"]).put_first(piece)
                return
            self._waiting += kept
            await self._journal_waiting()

    async def _journal_waiting(self) -> None:
        if not self._waiting:
            return
        records = [_record(piece.operation) for piece in self._waiting]
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._files, self._journal.append, records)
        except OSError as error:
            log.critical("The journal cannot be written: %s. Charges wait in memory.", error)
            return
        self._journaled += [piece.operation for piece in self._waiting]
        waiting, self._waiting = self._waiting, []
        for piece in waiting:
            assert piece.kept is not None
            _resolve(piece, piece.kept())

    async def _mend(self) -> None:
        while self.fault is not None:
            await asyncio.sleep(self._retry_seconds)
            async with self._keeping:
                try:
                    await self._mend_once()
                except Exception as error:
                    if not (is_unreachable(error) or isinstance(error, Unavailable | OSError)):
                        log.exception("The journal cannot be applied, on a fault of the program.")
                    await self._journal_waiting()
        self.on_mended()

    async def _mend_once(self) -> None:
        kept = [*self._journaled, *(piece.operation for piece in self._waiting)]
        await self._apply_kept(kept)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._files, self._journal.empty)
        log.warning("The database can be reached again; %d charges had waited.", len(kept))
        for piece in self._waiting:
            assert piece.kept is not None
            _resolve(piece, piece.kept())
        self._journaled, self._waiting = [], []
        self.fault = None

    async def _apply_kept(self, operations: Sequence[Operation]) -> list[tuple[Operation, Answer]]:
        """Also where there is nothing to apply: the database must show that it can be reached."""
        connection = await self.connect()
        try:
            await connection.execute("SELECT 1")
            done: list[tuple[Operation, Answer]] = []
            for start in range(0, len(operations), _JOURNAL_CHUNK):
                some = operations[start : start + _JOURNAL_CHUNK]
                done += zip(some, await self.call(connection, some), strict=True)
            for operation, answer in done:
                if answer.is_lost:
                    tell_lost(operation)
        finally:
            connection.terminate()
        return done


class _Lane:
    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._queue: deque[Piece] = deque()
        self._awake = asyncio.Event()
        self._stopping = False
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    def put(self, piece: Piece) -> None:
        self._queue.append(piece)
        self._awake.set()

    def put_first(self, piece: Piece) -> None:
        """Back to where it was: what came after it reckons with it."""
        self._queue.appendleft(piece)
        self._awake.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self._stopping = True
        self._awake.set()
        if self._task is not None:
            await self._task

    async def abandon(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._drop()

    async def _run(self) -> None:
        while self._queue or not self._stopping:
            if not self._queue:
                self._awake.clear()
                await self._awake.wait()
                continue
            queue = self._queue
            batch = [queue.popleft() for _ in range(min(len(queue), BATCH_MAX))]
            try:
                await self._do(batch)
            except Exception as error:  # top of the task: every piece must get its answer
                log.critical("A lane failed on a fault of the program.", exc_info=error)
                for piece in batch:
                    _fail(piece, error)
        self._drop()

    async def _do(self, batch: Sequence[Piece]) -> None:
        if self._lanes.fault is not None:
            await self._lanes.keep(batch)
            return
        try:
            answers = await self._ask([piece.operation for piece in batch])
        except Exception as error:
            if is_unreachable(error):
                await self._lanes.keep(batch, error)
            elif len(batch) > 1:
                for piece in batch:  # what cannot be written does not take its neighbours along
                    await self._do([piece])
            else:
                (piece,) = batch
                log.critical("could not be written: %s", _record(piece.operation), exc_info=error)
                _fail(piece, error)
            return
        for piece, answer in zip(batch, answers, strict=True):
            _resolve(piece, answer)

    async def _ask(self, operations: Sequence[Operation]) -> list[Answer]:
        try:
            return await self._ask_once(operations)
        except Exception as error:
            if not is_unreachable(error):
                raise
            log.info("sending a batch again: %s", reason(error))
            self._drop()
        return await self._ask_once(operations)

    async def _ask_once(self, operations: Sequence[Operation]) -> list[Answer]:
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._lanes.connect()
            return await self._lanes.call(self._connection, operations)
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.terminate()
        self._connection = None


def _without_zero_bytes(operation: Operation) -> Operation:
    """Postgres has none in its text."""
    return {
        name: value.replace("\0", "\ufffd") if isinstance(value, str) else value
        for name, value in operation.items()
    }


def _number(answer: Answer) -> int:
    return answer.number


def _record(operation: Operation) -> bytes:
    return _encode(operation)


def tell_lost(operation: Operation) -> None:
    log.critical(
        "is of an account that the database does not have, and is lost: %s", _record(operation)
    )


def _unavailable() -> Unavailable:
    return Unavailable("The database cannot be reached now. Try again later.")


def _resolve(piece: Piece, result: Any) -> None:
    if not piece.future.done():  # its waiter was cancelled: the write stands all the same
        piece.future.set_result(result)


def _fail(piece: Piece, error: BaseException) -> None:
    if not piece.future.done():
        piece.future.set_exception(error)
        piece.future.exception()  # read: a waiter that left does not make asyncio complain
