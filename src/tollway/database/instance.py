"""This process among the others that use one Postgres.

    register ──► live ── renews every 5 s, as long as it hears of changes
                  │  └── not heard of for 15 s ──► reaped, by whoever finds out; registers anew
                  └── stops ──► gone, with all that it held given back

An instance owns holds, credit leases and the claims of idempotency keys. Whoever sees that one does
not renew reaps it: what it holds is ended (`expire_holds`). "Sees" is by the observer's own clock
that does not step: a database whose clock is set a day ahead reaps nobody. And time in which the
database could not be asked does not count: after an outage everyone has 15 s to come back.

An instance hears of what others change (accounts, tokens, prices) by LISTEN, and by a poll behind
it. A renewal names what it has heard so far. So whoever freezes an account waits until every live
instance has heard of it; one that hears nothing loses its lease first, and knows so by its own
clock (`is_live`): it then asks the database at each hold.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path

from msgspec import Struct

from tollway.clock import Clock, new_id
from tollway.database.base import Row
from tollway.database.postgres import (
    CHANNEL,
    LEASE_SECONDS,
    Connection,
    PostgresDatabase,
    is_unreachable,
    reason,
)
from tollway.errors import Unavailable

RENEW_SECONDS = 5.0
POLL_SECONDS = 0.5
_MARGIN = 1 / 15  # of a lease, for what the way to the database takes
SWEEP_SECONDS = 30.0
HOLD_SECONDS = 4 * 3600.0
_CLOCK_SET_SECONDS = 60.0
"""So much that a clock is off by was set; less may be how long an answer took."""
_DAY_MS = 86_400_000
_CHANGES_KEPT_MS = _DAY_MS
"""By the database's clock. Who was away for longer cannot know what it has missed."""

log = logging.getLogger("tollway.database")


class Change(Struct, frozen=True):
    kind: str
    subject: str


class Instance:
    """`on_changes` is told what to read again, `on_recalls` the accounts whose leased credit others
    ask for, `on_reaped` each hold of another instance that was charged, `on_lapsed` that this one
    was reaped: all that it held is ended, and it has a new id."""

    def __init__(
        self,
        database: PostgresDatabase,
        clock: Clock,
        data_dir: Path,
        *,
        poll_seconds: float = POLL_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._database = database
        self._clock = clock
        self._file = data_dir / "instance"
        self._poll_seconds = poll_seconds
        self._lease_seconds = lease_seconds
        self.on_changes: Callable[[Collection[Change]], Awaitable[None]] = _ignore
        self.on_recalls: Callable[[Sequence[str]], None] = _ignore_now
        self.on_reaped: Callable[[Sequence[Row]], None] = _ignore_now
        self.on_lapsed: Callable[[], None] = lambda: None
        self.id = ""
        self.others = 0
        """How many other instances there are."""
        self._live_until = 0.0
        self._renewed_at = 0.0
        self._heard = ""
        self._heard_ms: int | None = None
        self._swept_at = clock.monotonic()
        self._seen: dict[str, tuple[int, float]] = {}
        self._asked_at = 0.0
        self._offset: float | None = None
        self._expires_from = float("-inf")
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_live(self) -> bool:
        return self._clock.monotonic() < self._live_until

    async def end_previous(self) -> list[Row]:
        """Ends what the process before this one held; the caller has the lock of the data
        directory, so it is dead. What of it was charged, as `on_reaped`."""
        with contextlib.suppress(FileNotFoundError):
            previous = self._file.read_text().strip()
            return await self._database.fetch(_EXPIRE, (previous,))
        return []

    async def register(self) -> None:
        asked_at = self._clock.monotonic()
        id_ = new_id("ins", self._clock.now())
        # Before it is in the database: a process that dies in between leaves a name of nobody.
        unfinished = self._file.with_suffix(".new")
        unfinished.write_text(id_)
        unfinished.rename(self._file)
        if not self._heard:  # one that begins anew goes on where it was: nothing is missed
            ((self._heard,),) = await self._database.fetch("SELECT txid_current_snapshot()::text")
        await self._database.execute(
            (
                "INSERT INTO instances (id, name, started_at, expires_at)"
                " VALUES (?, ?, now_ms(), now_ms() + ?)",
                (id_, f"{socket.gethostname()}:{os.getpid()}", self._lease_ms),
            )
        )
        self.id = id_
        self._live_until = 0.0  # until it has heard what has changed up to now
        self._renewed_at = asked_at - RENEW_SECONDS

    async def start(self) -> None:
        """Reads what has changed since `register`, and goes on doing so."""
        await self._turn()
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._listen())]

    async def stop(self) -> None:
        """The caller has settled what it held; whatever is left is given back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self._live_until = 0.0
        if not self.id:
            return
        try:
            self.on_reaped(await self._database.fetch(_EXPIRE, (self.id,)))
        except Unavailable:
            log.warning("the database cannot be reached; another instance will end this one")

    async def abandon(self) -> None:
        """As a process that dies: nothing is given back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- what goes on all the time ----------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._turn()
            except Unavailable:
                pass  # it was logged; the lease runs out meanwhile
            except Exception:
                log.exception("keeping up with the other instances failed")

    async def _listen(self) -> None:
        while True:
            try:
                await self._listen_once()
            except BaseException as error:
                if not is_unreachable(error):
                    raise
                log.info("listening to the database again: %s", reason(error))
            await asyncio.sleep(self._poll_seconds)

    async def _listen_once(self) -> None:
        connection: Connection = await self._database.connect()
        try:
            lost = asyncio.Event()
            connection.add_termination_listener(lambda *_: lost.set())
            await connection.add_listener(CHANNEL, lambda *_: self._wake.set())
            self._wake.set()
            await lost.wait()
        finally:
            connection.terminate()

    async def _turn(self) -> None:
        asked_at = self._clock.monotonic()
        rows = await self._database.fetch(_NEWS, (self._heard, self._heard, self.id))
        changes = {
            Change(kind, id_) for kind, id_, _ in rows if kind in ("account", "token", "price")
        }
        ((heard, now_ms),) = ((id_, n) for kind, id_, n in rows if kind == "snapshot")
        if self._heard_ms is not None and now_ms - self._heard_ms > _CHANGES_KEPT_MS / 2:
            log.warning("some of what changed may be forgotten; all is read again")
            changes = {Change(kind, id_) for kind, id_ in await self._database.fetch(_SUBJECTS)}
        if changes:
            await self.on_changes(changes)
        self._heard, self._heard_ms = heard, now_ms
        self._compare_clocks(asked_at, now_ms / 1000)
        if changes or asked_at - self._renewed_at >= RENEW_SECONDS or not self._live_until:
            await self._renew(asked_at)
        if recalls := [id_ for kind, id_, _ in rows if kind == "recall"]:
            self.on_recalls(recalls)
        await self._reap(asked_at, {id_: n for kind, id_, n in rows if kind == "instance"})
        if asked_at - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = asked_at
            await self._sweep(asked_at)

    async def _renew(self, asked_at: float) -> None:
        lease = (self.id, self._heard, self._lease_ms)
        if not await self._database.fetch("SELECT renew_instance(?, ?, ?)", lease):
            log.warning("this instance was not heard of for too long; it begins anew")
            await self.register()
            self.on_lapsed()
            self._wake.set()
            return
        self._renewed_at = asked_at
        self._live_until = asked_at + self._lease_seconds * (1 - _MARGIN)

    async def _reap(self, asked_at: float, renewals: dict[str, int]) -> None:
        """Ends those that have not renewed for as long as a lease lasts, while we looked."""
        looked_away = asked_at - self._asked_at > RENEW_SECONDS
        self._asked_at = asked_at
        renewals.pop(self.id, None)
        self.others = len(renewals)
        before, self._seen = self._seen, {}
        for id_, number in renewals.items():
            seen = before.get(id_)
            if seen is None or seen[0] != number or looked_away:
                self._seen[id_] = (number, asked_at)
                continue
            self._seen[id_] = seen
            if asked_at - seen[1] >= self._lease_seconds:
                log.warning("the instance %s is not heard of any more; its holds end", id_)
                self.on_reaped(await self._database.fetch(_EXPIRE, (id_,)))

    def _compare_clocks(self, asked_at: float, now: float) -> None:
        """By a database clock that is set ahead every hold is past its expiry at once."""
        offset = now - asked_at
        if self._offset is not None and abs(offset - self._offset) > _CLOCK_SET_SECONDS:
            log.warning("the database's clock was set by %.0f s", offset - self._offset)
            self._expires_from = asked_at + HOLD_SECONDS
        self._offset = offset

    async def _sweep(self, asked_at: float) -> None:
        """Holds past their own expiry, which nobody should leave; and what nobody needs any
        more."""
        if asked_at >= self._expires_from:
            self.on_reaped(await self._database.fetch(_EXPIRE, (None,)))
        await self._database.execute(
            ("DELETE FROM instances WHERE reaped AND expires_at < now_ms() - ?", (_DAY_MS,)),
            ("DELETE FROM changes WHERE created_at < now_ms() - ?", (_CHANGES_KEPT_MS,)),
        )

    @property
    def _lease_ms(self) -> int:
        return round(self._lease_seconds * 1000)


_NEWS = """
SELECT kind, subject, 0 FROM changes
 WHERE txid >= txid_snapshot_xmin(?::text::txid_snapshot)
   AND NOT txid_visible_in_snapshot(txid, ?::text::txid_snapshot)
UNION ALL SELECT 'recall', account_id, 0 FROM credit_leases WHERE instance = ? AND recalled
UNION ALL SELECT 'instance', id, renewals FROM instances WHERE NOT reaped
UNION ALL SELECT 'snapshot', txid_current_snapshot()::text, now_ms()"""

_SUBJECTS = "SELECT 'account', id FROM accounts UNION ALL SELECT 'token', id FROM tokens"

_EXPIRE = "SELECT * FROM expire_holds(?)"


async def _ignore(_: object) -> None:
    pass


def _ignore_now(_: object) -> None:
    pass
