"""Rates over all replicas, counted in Valkey (or Redis) by one script, `valkey.lua`.

    exact  -> (Valkey is gone, or hangs) -> shares -> (it is back) -> exact

*Exact*: every place is taken in Valkey, by its clock, so no span of 60 seconds holds more than the
limit on any number of replicas. Requests at a time are counted there too: each replica publishes
how many of an account's requests it runs, under a lease that it renews; what a replica that died
had running is forgotten with the lease.

*Shares*: without Valkey each replica counts for itself, and admits its share of each limit
(`shares.py`) by the replicas that were last known to live. A span across the change holds at most
the limit counted there and the limit counted here: twice the limit, and never more. That is why a
Valkey that started anew, and may have forgotten what it admitted, is not asked for a minute: what
was taken before it fell is older than the window then.

A replica that starts is told what it cannot remember (`join`): it waits until Valkey is asked again
and all others have heard of it. Where others kept to shares in the minute before, one that died may
have used up the share that this one would get, so it has none until that minute is over. For the
same reason the share of a replica that is gone stays unused for a minute.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tollway.clock import Clock
from tollway.errors import StartError
from tollway.metrics.counters import Metrics
from tollway.rates.base import CHAT, WINDOW_SECONDS, RateState, Take
from tollway.rates.concurrency import Concurrency
from tollway.rates.link import OPERATIONS_AT_ONCE, START_SECONDS_MAX, Ask, Link, Operation
from tollway.rates.memory import MemoryRateLimiter
from tollway.rates.shares import Shares

HEARTBEAT_SECONDS = 1.0
LEASE_SECONDS = 15.0
RENEW_EVERY_HEARTBEATS = 5
JOIN_SECONDS = 1.6
"""In which each live replica has found a Valkey that is new, told it what it lacks, and heard of
who has just started."""

SCRIPT = Path(__file__).with_name("valkey.lua").read_text(encoding="utf-8")

log = logging.getLogger("tollway.rates")


async def probe(url: str) -> str:
    """The name and version of the server there. Raises `StartError` where rates cannot be counted
    in it."""
    return await Link(url, SCRIPT, "probe", WINDOW_SECONDS, LEASE_SECONDS).probe()


class ValkeyRateLimiter:
    """Implements `RateLimiter`; `concurrency` is its counterpart for requests at a time."""

    def __init__(self, url: str, clock: Clock, metrics: Metrics, *, script: str = SCRIPT) -> None:
        replica = secrets.token_hex(6)
        self._link = Link(url, script, replica, WINDOW_SECONDS, LEASE_SECONDS)
        self._shares = Shares(replica, WINDOW_SECONDS)
        self._local = MemoryRateLimiter(clock)
        self._monotonic = clock.monotonic
        self._metrics = metrics
        self._server = ""
        self._exact = False
        self._last_exact = float("-inf")
        self._first_exact = float("inf")
        self._shared_at = float("-inf")
        self._shared_until = float("-inf")
        self._share_from = float("inf")
        self._heartbeat: asyncio.Task[None] | None = None
        self.concurrency = _SharedConcurrency(self)

    async def start(self, seconds_max: float = START_SECONDS_MAX) -> None:
        """Raises `StartError` where Valkey cannot be used within so long."""
        await self._link.start(self, seconds_max)
        self._heartbeat = asyncio.create_task(self._beat(), name="tollway-heartbeat")

    async def join(self) -> None:
        """Returns when this replica may serve. Raises `StartError` where Valkey goes meanwhile and
        stays away."""
        up_at = self._monotonic()
        if not self._exact:
            log.warning("the rate store has started anew: this replica serves when it is exact")
        while not self._exact or self._monotonic() - self._first_exact < JOIN_SECONDS:
            if self._link.up:
                up_at = self._monotonic()
            elif self._monotonic() - up_at > START_SECONDS_MAX:
                raise StartError("The rate store has gone. Check server.rate_store.")
            await asyncio.sleep(HEARTBEAT_SECONDS / 20)
        self._share_from = self._shared_until

    async def stop(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.wait([self._heartbeat])
        await self._link.stop()

    # --- RateLimiter ------------------------------------------------------------------------------

    def take_at_once(self, key: str, limit: int) -> None:
        """Valkey is asked, each time."""

    async def take(self, key: str, limit: int) -> Take:
        if self._exact:
            operation: Operation = ("take", key, limit)
            if key.startswith(CHAT):
                operation += self.concurrency.asking(key[len(CHAT) :])
            answer = await self._link.ask(operation)
            if answer is not None:
                at, remaining, reset = answer
                state = RateState(limit, remaining, reset / 1e6)
                return Take(at > 0, at / 1e6, state, crowded=at < 0)
        return await self._take_share(key, limit)

    async def give_back(self, key: str, admitted_at: float) -> None:
        if admitted_at < 0:
            await self._local.give_back(key, -admitted_at)
        else:
            self._link.tell(("give_back", key, round(admitted_at * 1e6)))

    async def state(self, key: str, limit: int) -> RateState:
        if self._exact:
            answer = await self._link.ask(("state", key, limit))
            if answer is not None:
                _, remaining, reset = answer
                return RateState(limit, remaining, reset / 1e6)
        return await self._local.state(key, self._share_of(limit, key))

    async def _take_share(self, key: str, limit: int) -> Take:
        take = await self._local.take(key, self._share_of(limit, key))
        if take.admitted:
            self._shared_at = take.admitted_at
        # Negative: a place that Valkey knows nothing of.
        return Take(take.admitted, -take.admitted_at, take.state)

    def _share_of(self, limit: int, key: str) -> int:
        return self._shares.of(limit, key) if self._monotonic() >= self._share_from else 0

    # --- how Valkey fares -------------------------------------------------------------------------

    async def connected(self, server: str, ask: Ask) -> None:
        recovering = 0.0
        if self._server not in ("", server):
            recovering = max(0.0, self._last_exact + WINDOW_SECONDS - self._monotonic())
        (heartbeat,) = await ask([self._heartbeat_of(recovering)])
        self._server = server
        # What is running here must be known there before it is asked how much is.
        running = self.concurrency.all_running()
        for start in range(0, len(running), OPERATIONS_AT_ONCE):
            await ask(running[start : start + OPERATIONS_AT_ONCE])
        self._told(heartbeat)

    def fell(self) -> None:
        self._metrics.rate_store_falls += 1
        self._keep_to_shares()

    def called(self, seconds: float) -> None:
        self._metrics.rate_store_seconds.observe(seconds)

    async def _beat(self) -> None:
        beats = 0
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            beats += 1
            if beats % RENEW_EVERY_HEARTBEATS == 0:
                for operation in self.concurrency.all_running():
                    self._link.tell(operation)
            heartbeat = await self._link.ask(self._heartbeat_of(0.0))
            if heartbeat is not None:
                self._told(heartbeat)

    def _heartbeat_of(self, recovering_seconds: float) -> Operation:
        shared_seconds = max(0.0, self._shared_at + WINDOW_SECONDS - self._monotonic())
        return ("heartbeat", round(recovering_seconds * 1e6), round(shared_seconds * 1e6))

    def _told(self, heartbeat: Sequence[Any]) -> None:
        recovering, replicas, shared = heartbeat
        if recovering:
            self._keep_to_shares()
            return
        now = self._monotonic()
        self._shared_until = now + shared / 1e6
        if not self._exact:
            self._shares.know_again(now)
        self._shares.know(replicas, now)
        self._metrics.replicas_live = len(replicas)
        if not self._exact:
            self._exact = self._metrics.rates_exact = True
            self._first_exact = min(self._first_exact, now)
            self._share_from = min(self._share_from, self._shared_until)
            log.info("rates are counted over all %d replicas", len(replicas))

    def _keep_to_shares(self) -> None:
        if self._exact:
            self._exact = self._metrics.rates_exact = False
            self._last_exact = self._monotonic()
            log.warning(
                "rates are not counted over all replicas now: this one admits its share of each "
                "limit, by %d replicas",
                self._shares.replicas,
            )

    # --- for the concurrency ----------------------------------------------------------------------

    def share_now(self, limit: int, key: str) -> int:
        """The limit that this replica can look at alone: all of it while Valkey counts the rest."""
        return limit if self._exact else self._shares.of(limit, key)

    def publish(self, account_id: str, running: int) -> None:
        self._link.tell(("running", account_id, running))


class _SharedConcurrency(Concurrency):
    """Counts this replica's requests and publishes their number. Whether the other replicas leave
    room for one more is asked together with its place in the rate, in `ValkeyRateLimiter.take`."""

    def __init__(self, rates: ValkeyRateLimiter) -> None:
        super().__init__()
        self._rates = rates
        self._limits: dict[str, int] = {}

    def enter(self, key: str, limit: int) -> bool:
        if not super().enter(key, self._rates.share_now(limit, key)):
            return False
        self._limits[key] = limit
        return True

    def leave(self, key: str) -> None:
        super().leave(key)
        running = self.running(key)
        if not running:
            del self._limits[key]
        self._rates.publish(key, running)

    def asking(self, key: str) -> tuple[str, int, int] | tuple[()]:
        """The account, its requests here, the newest among them, and how many may run in all."""
        limit = self._limits.get(key)
        return () if limit is None else (key, self.running(key), limit)

    def all_running(self) -> list[Operation]:
        return [("running", key, self.running(key)) for key in self._limits]
