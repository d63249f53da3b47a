"""Idempotency keys in Postgres: a key is one request's, on whichever replica it runs.

That it is running is known by the instance of its claim: a claim whose instance was reaped is free,
and whoever reaps it completes what was charged. Ages are measured by the database's clock as it was
at the start, and by ours that does not step since then.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from tollway.clock import Clock
from tollway.database.postgres import PostgresDatabase
from tollway.errors import IdempotencyConflict, Unavailable
from tollway.ledger.base import Earlier
from tollway.ledger.idempotency import KEY_SECONDS, require_same_body

_ROWS_PER_SWEEP = 10_000


class PostgresIdempotencyKeys:
    """Implements `IdempotencyKeys`. `end` is for the settlement, in whose transaction it is
    written."""

    def __init__(
        self, database: PostgresDatabase, clock: Clock, instance_id: Callable[[], str]
    ) -> None:
        self._database = database
        self._monotonic = clock.monotonic
        self._instance_id = instance_id
        self._epoch_ms = 0.0
        self._names: dict[str, tuple[str, str]] = {}
        self._to_free: dict[str, tuple[str, str]] = {}
        self._freeing: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def begin(self) -> None:
        ((now_ms,),) = await self._database.fetch("SELECT now_ms()")
        self._epoch_ms = now_ms - self._monotonic() * 1000

    async def finish(self) -> None:
        if self._freeing:
            await asyncio.wait(self._freeing.values())

    async def abandon(self) -> None:
        freeing = list(self._freeing.values())
        for task in freeing:
            task.cancel()
        await asyncio.gather(*freeing, return_exceptions=True)

    async def claim(
        self, account_id: str, key: str, body_digest: bytes, request_id: str
    ) -> Earlier | None:
        name = (account_id, key)
        if (freeing := self._freeing.get(name)) is not None:
            await asyncio.wait([freeing])
        self._names[request_id] = name
        claiming = asyncio.ensure_future(self._claim(account_id, key, body_digest, request_id))
        try:
            outcome, digest, earlier_id, reply = await asyncio.shield(claiming)
        except BaseException:
            # It may have been claimed all the same; who comes next waits until it no longer is.
            del self._names[request_id]
            self._free(request_id, name, after=claiming)
            raise
        if outcome == "claimed":
            return None
        del self._names[request_id]
        if outcome == "lapsed":
            raise Unavailable("This replica begins anew. Try again.", retry_after_seconds=1.0)
        require_same_body(digest, body_digest)
        if outcome == "running":
            raise IdempotencyConflict(
                "The first request with this Idempotency-Key is still running. Wait for its reply.",
                code="idempotency_in_progress",
                retry=True,
            )
        return Earlier(earlier_id, reply)

    async def _claim(
        self, account_id: str, key: str, body_digest: bytes, request_id: str
    ) -> tuple[Any, ...]:
        """Any: a row of `claim_key`. Asked again where its answer was lost: by the same request it
        is claimed once."""
        now_ms = self._now_ms()
        (row,) = await self._database.fetch(
            "SELECT * FROM claim_key(?, ?, ?, ?, ?, ?, ?)",
            (
                account_id,
                key,
                body_digest,
                request_id,
                self._instance_id(),
                now_ms,
                now_ms - KEY_SECONDS * 1000,
            ),
        )
        return row

    def free(self, request_id: str) -> None:
        name = self._names.pop(request_id, None)
        if name is not None:
            self._free(request_id, name)

    def end(self, request_id: str, *, completed: bool, reply: bytes | None) -> dict[str, Any]:
        """What the settlement's operation says of the key."""
        _, key = self._names.pop(request_id)
        return {
            "key": key,
            "completed": completed,
            "reply": None if reply is None else reply.hex(),
        }

    def is_claimed(self, request_id: str) -> bool:
        return request_id in self._names

    async def sweep(self) -> None:
        oldest = self._now_ms() - KEY_SECONDS * 1000
        await self._database.execute(
            (
                "DELETE FROM idempotency WHERE (account_id, key) IN (SELECT account_id, key FROM"
                " idempotency WHERE created_at <= ? ORDER BY created_at LIMIT ?)",
                (oldest, _ROWS_PER_SWEEP),
            )
        )

    def try_again(self) -> None:
        """What could not be freed is. Now and then, and not when a fault has ended: one connection
        may break and no other."""
        again, self._to_free = self._to_free, {}
        for request_id, name in again.items():
            self._free(request_id, name)

    def lapse(self) -> None:
        """Whoever reaped this instance has freed what was to be freed."""
        self._to_free.clear()

    def _free(
        self,
        request_id: str,
        name: tuple[str, str],
        after: asyncio.Future[tuple[Any, ...]] | None = None,
    ) -> None:
        task = asyncio.ensure_future(self._delete(request_id, name, after))
        self._freeing[name] = task
        task.add_done_callback(lambda done: self._freed(name, done))

    def _freed(self, name: tuple[str, str], done: asyncio.Task[None]) -> None:
        if self._freeing.get(name) is done:
            del self._freeing[name]

    async def _delete(
        self,
        request_id: str,
        name: tuple[str, str],
        after: asyncio.Future[tuple[Any, ...]] | None,
    ) -> None:
        if after is not None:
            await asyncio.gather(after, return_exceptions=True)
        try:
            await self._database.execute((_FREE, (*name, request_id)))
        except Unavailable:
            self._to_free[request_id] = name

    def _now_ms(self) -> int:
        return round(self._epoch_ms + self._monotonic() * 1000)


_FREE = (
    "DELETE FROM idempotency WHERE account_id = ? AND key = ? AND request_id = ? AND completed = 0"
)
