"""Idempotency keys in the SQLite file: a client that tries again does not pay again.

    claim ──► running ─┬─ settled: charged or completed ──► completed   in its transaction
                       └─ settled otherwise, refused, crashed ──► free

A claim is the first durable write of its request. That it is running is known in memory alone: a
row that is neither completed nor running here is what a crash or a failed write left, and is free.
Keys live for a day.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from msgspec import Struct

from tollway.clock import Clock
from tollway.database.writer import Work
from tollway.errors import IdempotencyConflict, IdempotencyMismatch
from tollway.ledger.base import Earlier

KEY_SECONDS = 24 * 60 * 60
_ROWS_PER_SWEEP = 10_000


class ClaimEnd(Struct, frozen=True):
    """What becomes of a key with the settlement of its request."""

    account_id: str
    key: str
    request_id: str
    completed: bool
    reply: bytes | None

    def write(self, connection: sqlite3.Connection) -> None:
        name = (self.account_id, self.key, self.request_id)
        if self.completed:
            connection.execute(
                "UPDATE idempotency SET completed = 1, reply = ?"
                " WHERE account_id = ? AND key = ? AND request_id = ?",
                (self.reply, *name),
            )
        else:
            connection.execute(
                "DELETE FROM idempotency WHERE account_id = ? AND key = ? AND request_id = ?", name
            )


class SqliteIdempotencyKeys:
    """Implements `IdempotencyKeys`."""

    def __init__(self, submit: Callable[[Work], None], clock: Clock) -> None:
        self._submit = submit
        self._monotonic = clock.monotonic
        # Ages are measured with a clock that does not step: one set a day ahead must not end a key
        # early, for its retry would pay again.
        self._epoch = clock.now() - clock.monotonic()
        self._running: dict[tuple[str, str], bytes] = {}
        self._name_by_request: dict[str, tuple[str, str]] = {}

    async def claim(
        self, account_id: str, key: str, body_digest: bytes, request_id: str
    ) -> Earlier | None:
        name = (account_id, key)
        if (running := self._running.get(name)) is not None:
            require_same_body(running, body_digest)
            raise IdempotencyConflict(
                "The first request with this Idempotency-Key is still running. Wait for its reply.",
                code="idempotency_in_progress",
                retry=True,
            )
        self._running[name] = body_digest
        self._name_by_request[request_id] = name
        work = _Claim(
            asyncio.get_running_loop().create_future(),
            name,
            body_digest,
            request_id,
            round(self._now() * 1000),
        )
        self._submit(work)
        try:
            earlier = await asyncio.shield(work.future)
        except BaseException:
            self.free(request_id)
            raise
        if earlier is None:
            return None
        self._forget(request_id)
        earlier_digest, earlier_id, reply = earlier
        require_same_body(earlier_digest, body_digest)
        return Earlier(earlier_id, reply)

    def _now(self) -> float:
        return self._epoch + self._monotonic()

    def free(self, request_id: str) -> None:
        name = self._forget(request_id)
        if name is not None:
            end = ClaimEnd(*name, request_id, completed=False, reply=None)
            self._submit(_End(asyncio.get_running_loop().create_future(), end))

    def end(self, request_id: str, *, completed: bool, reply: bytes | None) -> ClaimEnd | None:
        """For the settlement to write; None where the request had no key."""
        name = self._forget(request_id)
        return None if name is None else ClaimEnd(*name, request_id, completed, reply)

    def is_claimed(self, request_id: str) -> bool:
        return request_id in self._name_by_request

    async def sweep(self) -> None:
        oldest = round((self._now() - KEY_SECONDS) * 1000)
        work = _Sweep(asyncio.get_running_loop().create_future(), oldest)
        self._submit(work)
        await work.future

    def _forget(self, request_id: str) -> tuple[str, str] | None:
        name = self._name_by_request.pop(request_id, None)
        if name is not None:
            del self._running[name]
        return name


def require_same_body(earlier: bytes, now: bytes) -> None:
    if earlier != now:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used within the last day with another body. Use a new key "
            "for a new request, and the same bytes for the same one."
        )


# --- what the writer thread does ------------------------------------------------------------------


class _Claim(Struct, gc=False):
    may_wait: ClassVar[bool] = False

    future: asyncio.Future[Any]
    name: tuple[str, str]
    body_digest: bytes
    request_id: str
    now_ms: int

    @staticmethod
    def apply(
        connection: sqlite3.Connection, batch: Sequence["_Claim"]
    ) -> list[tuple[bytes, str, bytes | None] | None]:
        return [work._claim(connection) for work in batch]

    @staticmethod
    def rolled_back(batch: Sequence["_Claim"]) -> None:
        pass

    def _claim(self, connection: sqlite3.Connection) -> tuple[bytes, str, bytes | None] | None:
        earlier = connection.execute(
            "SELECT body_digest, request_id, reply FROM idempotency"
            " WHERE account_id = ? AND key = ? AND completed = 1 AND created_at > ?",
            (*self.name, self.now_ms - KEY_SECONDS * 1000),
        ).fetchone()
        if earlier is None:
            connection.execute(
                "INSERT OR REPLACE INTO idempotency"
                " (account_id, key, body_digest, request_id, created_at) VALUES (?, ?, ?, ?, ?)",
                (*self.name, self.body_digest, self.request_id, self.now_ms),
            )
        return earlier


class _End(Struct, gc=False):
    may_wait: ClassVar[bool] = False

    future: asyncio.Future[Any]
    end: ClaimEnd

    @staticmethod
    def apply(connection: sqlite3.Connection, batch: Sequence["_End"]) -> list[None]:
        for work in batch:
            work.end.write(connection)
        return [None for _ in batch]

    @staticmethod
    def rolled_back(batch: Sequence["_End"]) -> None:
        pass


class _Sweep(Struct, gc=False):
    """A bounded number of rows at a time: charges wait behind it."""

    may_wait: ClassVar[bool] = False

    future: asyncio.Future[Any]
    oldest_ms: int

    @staticmethod
    def apply(connection: sqlite3.Connection, batch: Sequence["_Sweep"]) -> list[None]:
        connection.execute(
            "DELETE FROM idempotency WHERE (account_id, key) IN (SELECT account_id, key FROM"
            " idempotency WHERE created_at <= ? ORDER BY created_at LIMIT ?)",
            (batch[-1].oldest_ms, _ROWS_PER_SWEEP),
        )
        return [None for _ in batch]

    @staticmethod
    def rolled_back(batch: Sequence["_Sweep"]) -> None:
        pass
