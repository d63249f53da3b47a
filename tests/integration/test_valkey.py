"""Rates over several replicas, in a real Redis.

The script is the product's but for one line: its time stands still until the test moves it, so that
60 seconds are 60 seconds and what is exact can be asked exactly.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle

import pytest
from hypothesis import HealthCheck, given, settings
from tests.support.clock import FixedClock
from tests.support.ports import free_port
from tests.support.redis import RedisServer, a_redis
from tests.unit.rates.rate_suite import LIMIT, Rates, RateSuite, check_every_minute, gaps

from tollway.clock import Clock, SystemClock
from tollway.errors import StartError
from tollway.metrics.counters import Metrics
from tollway.rates.base import CHAT, WINDOW_SECONDS, RateState, Take
from tollway.rates.link import START_SECONDS_MAX
from tollway.rates.valkey import (
    JOIN_SECONDS,
    LEASE_SECONDS,
    SCRIPT,
    ValkeyRateLimiter,
)

CLOCK_STARTS = 1_795_420_800 * 1_000_000
NOW = "redis.call('TIME')"
assert SCRIPT.count(NOW) == 1
MOVED_SCRIPT = SCRIPT.replace(NOW, "redis.call('MGET', 'seconds', 'microseconds')")
SECONDS_MAX = 20.0
"""For what comes by itself: a heartbeat, a reconnection, the end of a call that hangs."""


@dataclass(frozen=True, slots=True)
class Replica:
    limiter: ValkeyRateLimiter
    metrics: Metrics

    async def take(self, key: str = "a", limit: int = LIMIT) -> Take:
        async with asyncio.timeout(SECONDS_MAX):
            return await self.limiter.take(key, limit)

    async def admitted(self, times: int, key: str = "a", limit: int = LIMIT) -> int:
        return sum([(await self.take(key, limit)).admitted for _ in range(times)])

    async def begin(self, account: str, at_a_time: int, limit: int = 1000) -> bool:
        """A chat request, as the gate lets it in."""
        if not self.limiter.concurrency.enter(account, at_a_time):
            return False
        take = await self.take(CHAT + account, limit)
        if not take.admitted:
            self.limiter.concurrency.leave(account)
        return take.admitted

    @asynccontextmanager
    async def joining(self) -> AsyncGenerator[asyncio.Task[None]]:
        task = asyncio.create_task(self.limiter.join())
        yield task
        task.cancel()

    async def exact(self, exact: bool = True) -> None:
        await until(lambda: self.metrics.rates_exact is exact)


class MovedClock(FixedClock):
    """A server's clock, in whole microseconds, and a replica's, which move together."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self._server = server
        self._client = server.client()
        self._microseconds = CLOCK_STARTS
        self.set()

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self.step_server(seconds)

    def step_server(self, seconds: float) -> None:
        self._microseconds += round(seconds * 1e6)
        if self._server.answers:
            self.set()

    def close(self) -> None:
        self._client.close()

    def set(self) -> None:
        seconds, microseconds = divmod(self._microseconds, 1_000_000)
        self._client.mset({"seconds": seconds, "microseconds": microseconds})


@asynccontextmanager
async def a_replica(server: RedisServer, clock: Clock) -> AsyncGenerator[Replica]:
    metrics = Metrics()
    metrics.rates_exact = False
    limiter = ValkeyRateLimiter(server.url, clock, metrics, script=MOVED_SCRIPT)
    await limiter.start()
    try:
        yield Replica(limiter, metrics)
    finally:
        await limiter.stop()


@asynccontextmanager
async def replicas_of(
    server: RedisServer, clock: Clock, count: int = 3
) -> AsyncGenerator[list[Replica]]:
    """Each of them knows of the others."""
    async with contextlib.AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(a_replica(server, clock)) for _ in range(count)]
        await until(lambda: all(one.metrics.replicas_live == count for one in replicas))
        yield replicas


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not true():  # noqa: ASYNC110 (a heartbeat tells nobody when it has come)
            await asyncio.sleep(0.01)


async def admitted_by(replicas: list[Replica], times: int, key: str = "a") -> int:
    turns = zip(cycle(replicas), range(times), strict=False)
    return sum([(await replica.take(key)).admitted for replica, _ in turns])


@pytest.fixture(scope="module")
def running_server() -> Generator[RedisServer]:
    with a_redis() as server:
        yield server


@pytest.fixture
def server(running_server: RedisServer) -> Generator[RedisServer]:
    """Empty, and up again after a test that took it down."""
    with running_server.client() as client:
        client.flushall()
    yield running_server
    if running_server.runs:
        running_server.resume()
    else:
        running_server.start()


@pytest.fixture
def clock(server: RedisServer) -> Generator[MovedClock]:
    with contextlib.closing(MovedClock(server)) as clock:
        yield clock


@pytest.fixture
async def replica(server: RedisServer, clock: MovedClock) -> AsyncIterator[Replica]:
    async with a_replica(server, clock) as one:
        yield one


class TestValkeyRateLimiter(RateSuite):
    @pytest.fixture
    def rates(self, replica: Replica, clock: MovedClock) -> Rates:
        return Rates(replica.limiter, clock.advance)


# --- several replicas -----------------------------------------------------------------------------


async def test_replicas_admit_the_limit_together(server: RedisServer, clock: MovedClock) -> None:
    async with replicas_of(server, clock) as replicas:
        assert await admitted_by(replicas, 60) == LIMIT
        assert [(await one.limiter.state("a", LIMIT)).remaining for one in replicas] == [0, 0, 0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gaps)
async def test_no_minute_of_all_replicas_has_more_than_the_limit_and_none_refuses_with_fewer(
    server: RedisServer, gaps: list[int]
) -> None:
    with server.client() as client:
        client.flushall()
    async with contextlib.AsyncExitStack() as stack:
        clock = stack.enter_context(contextlib.closing(MovedClock(server)))
        replicas = [await stack.enter_async_context(a_replica(server, clock)) for _ in range(3)]
        await check_every_minute(Rates(_InTurn(replicas), clock.advance), gaps)


class _InTurn:
    """Each call goes to the next replica, as through a load balancer."""

    def __init__(self, replicas: list[Replica]) -> None:
        self._limiters = cycle([replica.limiter for replica in replicas])

    def take_at_once(self, key: str, limit: int) -> Take | None:
        return next(self._limiters).take_at_once(key, limit)

    async def take(self, key: str, limit: int) -> Take:
        return await next(self._limiters).take(key, limit)

    async def give_back(self, key: str, admitted_at: float) -> None:
        await next(self._limiters).give_back(key, admitted_at)

    async def state(self, key: str, limit: int) -> RateState:
        return await next(self._limiters).state(key, limit)


async def test_a_place_may_be_given_back_to_any_replica(
    server: RedisServer, clock: MovedClock
) -> None:
    async with replicas_of(server, clock, 2) as (one, other):
        take = await one.take()
        assert await other.admitted(50) == LIMIT - 1
        await one.limiter.give_back("a", take.admitted_at)
        await one.limiter.state("a", LIMIT)  # what was told before has arrived
        assert await other.admitted(5) == 1


async def test_many_at_once_share_a_call(replica: Replica) -> None:
    calls_before = sum(replica.metrics.rate_store_seconds.counts)

    takes = await asyncio.gather(*(replica.take() for _ in range(100)))

    assert sum(take.admitted for take in takes) == LIMIT
    # A heartbeat may fall between.
    assert sum(replica.metrics.rate_store_seconds.counts) - calls_before <= 3


async def test_a_request_that_is_given_up_while_it_waits_harms_no_other(replica: Replica) -> None:
    asking = [asyncio.create_task(replica.take()) for _ in range(20)]
    await asyncio.sleep(0)
    asking[3].cancel()

    answers = await asyncio.gather(*asking, return_exceptions=True)

    assert isinstance(answers.pop(3), asyncio.CancelledError)
    assert all(isinstance(answer, Take) and answer.admitted for answer in answers)


async def test_a_server_that_lost_the_script_is_given_it_again(
    server: RedisServer, replica: Replica
) -> None:
    assert await replica.admitted(10) == 10
    with server.client() as client:
        client.script_flush()

    assert await replica.admitted(30) == LIMIT - 10
    assert replica.metrics.rate_store_falls == 0


async def test_a_server_whose_clock_is_set_back_forgets_nothing_and_blocks_no_longer_than_a_minute(
    replica: Replica, clock: MovedClock
) -> None:
    await replica.admitted(LIMIT)
    clock.step_server(-86_400)
    assert await replica.admitted(5) == 0
    clock.advance(60)
    assert await replica.admitted(5) == 0
    clock.advance(0.001)
    assert await replica.admitted(50) == LIMIT


async def test_nothing_is_left_in_the_server_of_an_account_that_stays_away(
    server: RedisServer, replica: Replica
) -> None:
    await replica.begin("acc", 10)
    with server.client() as client:
        keys = client.keys("tollway:*:*")
        assert len(keys) == 2
        assert all(0 < client.ttl(key) < 65 for key in keys)


async def test_under_load_no_60_seconds_of_three_replicas_hold_31(server: RedisServer) -> None:
    """By the times that the server recorded, whose minutes take two seconds here."""
    fast = f"""(function()
      local time = redis.call('TIME')
      local now = ((time[1] - {int(time.time())}) * 1000000 + time[2]) * 30 + {CLOCK_STARTS}
      return {{math.floor(now / 1000000), now % 1000000}}
    end)()"""
    script = SCRIPT.replace(NOW, fast)
    admitted: list[float] = []
    end = time.monotonic() + 6.0

    async def client(limiter: ValkeyRateLimiter) -> None:
        while time.monotonic() < end:
            take = await limiter.take("a", LIMIT)
            admitted.extend([take.admitted_at] if take.admitted else [])
            await asyncio.sleep(0.002)

    async with contextlib.AsyncExitStack() as stack:
        limiters = [
            ValkeyRateLimiter(server.url, SystemClock(), Metrics(), script=script) for _ in range(3)
        ]
        for limiter in limiters:
            await limiter.start()
            stack.push_async_callback(limiter.stop)
        await asyncio.gather(*(client(limiter) for limiter in limiters for _ in range(8)))

    admitted.sort()
    assert len(admitted) > 2 * LIMIT
    for number, at in enumerate(admitted[LIMIT:]):
        assert at - admitted[number] > WINDOW_SECONDS


# --- requests at a time ---------------------------------------------------------------------------


async def test_replicas_run_so_many_requests_of_an_account_together_and_no_more(
    server: RedisServer, clock: MovedClock
) -> None:
    async with replicas_of(server, clock, 2) as (one, other):
        assert [await one.begin("acc", 4) for _ in range(3)] == [True] * 3
        assert [await other.begin("acc", 4) for _ in range(2)] == [True, False]
        assert not await one.begin("acc", 4)
        assert await other.begin("another", 4)

        one.limiter.concurrency.leave("acc")
        await one.limiter.state("a", 1)
        assert [await other.begin("acc", 4) for _ in range(2)] == [True, False]


async def test_a_request_too_many_takes_no_place_of_the_rate(
    server: RedisServer, clock: MovedClock
) -> None:
    async with replicas_of(server, clock, 2) as (one, other):
        assert await one.begin("acc", 1)
        assert other.limiter.concurrency.enter("acc", 1)
        take = await other.take(CHAT + "acc")

        assert (take.admitted, take.crowded) == (False, True)
        assert (await one.limiter.state(CHAT + "acc", LIMIT)).remaining == LIMIT - 1


async def test_a_request_that_its_rate_refuses_does_not_count_as_running(
    server: RedisServer, clock: MovedClock
) -> None:
    async with replicas_of(server, clock, 2) as (one, other):
        assert await one.begin("acc", 2, limit=1)
        assert not await one.begin("acc", 2, limit=1)
        await one.limiter.state("a", 1)
        assert await other.begin("acc", 2, limit=10)


async def test_what_a_dead_replica_had_running_is_forgotten_with_its_lease(
    server: RedisServer, clock: MovedClock
) -> None:
    async with a_replica(server, clock) as living:
        dead = ValkeyRateLimiter(server.url, clock, Metrics(), script=MOVED_SCRIPT)
        await dead.start()
        assert await Replica(dead, Metrics()).begin("acc", 1)
        await dead.stop()  # and its request has not ended

        assert not await living.begin("acc", 1)
        clock.advance(LEASE_SECONDS - 1)
        assert not await living.begin("acc", 1)
        clock.advance(1.001)
        assert await living.begin("acc", 1)


async def test_a_request_that_runs_longer_than_the_lease_still_counts(
    server: RedisServer, clock: MovedClock
) -> None:
    async with replicas_of(server, clock, 2) as (one, other):
        assert await one.begin("acc", 1)
        with server.client() as client:
            (was,) = client.hvals("tollway:running:acc")
            clock.advance(LEASE_SECONDS / 2)
            await until(lambda: client.hvals("tollway:running:acc") != [was])
        clock.advance(LEASE_SECONDS - 1)
        assert not await other.begin("acc", 1)


# --- Valkey is away -------------------------------------------------------------------------------


async def test_while_valkey_is_dead_replicas_admit_their_shares_of_the_limit(
    server: RedisServer, clock: MovedClock
) -> None:
    async with replicas_of(server, clock) as replicas:
        server.kill()
        assert await admitted_by(replicas, 120) == LIMIT
        assert [await one.admitted(5, "b") for one in replicas] == [5, 5, 5]
        assert [one.metrics.rates_exact for one in replicas] == [False] * 3
        assert [one.metrics.rate_store_falls for one in replicas] == [1] * 3
        assert (await replicas[0].limiter.state("b", LIMIT)).remaining == 5


async def test_nobody_waits_for_a_valkey_that_hangs(server: RedisServer, clock: MovedClock) -> None:
    async with replicas_of(server, clock) as replicas:
        server.pause()
        takes = await asyncio.gather(*(one.take() for one in replicas for _ in range(40)))
        assert sum(take.admitted for take in takes) == LIMIT
        # From now on nobody asks it: this many waits would outlast the test.
        assert await admitted_by(replicas, 1000) == 0


async def test_a_span_across_a_hang_holds_twice_the_limit_at_most(
    server: RedisServer, clock: MovedClock
) -> None:
    async with replicas_of(server, clock) as replicas:
        assert await admitted_by(replicas, 60) == LIMIT
        clock.advance(1)
        server.pause()
        assert await admitted_by(replicas, 120) == LIMIT
        clock.advance(1)
        server.resume()
        clock.set()
        for one in replicas:
            await one.exact()
        # It remembers what it had admitted.
        assert await admitted_by(replicas, 60) == 0
        clock.advance(58.001)
        assert await admitted_by(replicas, 60) == LIMIT


async def test_a_span_across_a_crash_of_valkey_holds_twice_the_limit_at_most(
    server: RedisServer, clock: MovedClock
) -> None:
    """Started anew it has forgotten what it admitted, so it is not asked for a minute."""
    async with replicas_of(server, clock) as replicas:
        assert await admitted_by(replicas, 60) == LIMIT
        clock.advance(1)
        server.kill()
        assert await admitted_by(replicas, 120) == LIMIT
        server.start()
        clock.set()
        with server.client() as client:
            await until(lambda: client.zcard("tollway:replicas") == 3)
            assert client.exists("tollway:recovering")
        clock.advance(57)
        assert await admitted_by(replicas, 60) == 0
        assert not any(one.metrics.rates_exact for one in replicas)

        clock.advance(4)
        for one in replicas:
            await one.exact()
        assert await admitted_by(replicas, 60) == LIMIT
        await until(lambda: all(one.metrics.replicas_live == 3 for one in replicas))


async def test_a_replica_that_starts_while_valkey_recovers_serves_when_it_is_exact(
    server: RedisServer, clock: MovedClock
) -> None:
    async with replicas_of(server, clock, 2) as replicas:
        server.kill()
        await admitted_by(replicas, 2)
        server.start()
        clock.set()
        with server.client() as client:
            await until(lambda: client.zcard("tollway:replicas") == 2)
        async with a_replica(server, clock) as late, late.joining() as joined:
            assert not late.metrics.rates_exact
            assert await late.admitted(5) == 0  # nobody knows how many it would be one of
            clock.advance(61)
            await late.exact()
            assert not joined.done()
            clock.advance(2 * JOIN_SECONDS)
            await joined


async def test_a_replica_in_the_place_of_one_that_died_has_no_second_share_of_the_same_minute(
    server: RedisServer, clock: MovedClock
) -> None:
    async with replicas_of(server, clock, 2) as replicas:
        server.pause()
        assert await admitted_by(replicas, 60) == LIMIT
        server.resume()
        clock.set()
        for one in replicas:
            await one.exact()
        async with a_replica(server, clock) as late:
            clock.advance(2 * JOIN_SECONDS)
            await late.limiter.join()
            server.kill()
            assert await late.admitted(5) == 0
            clock.advance(60)
            assert await late.admitted(60) == LIMIT / 3


async def test_the_share_of_a_replica_that_is_gone_is_nobodys_for_a_minute(
    server: RedisServer, clock: MovedClock
) -> None:
    async with replicas_of(server, clock, 2) as replicas:
        async with a_replica(server, clock):
            await until(lambda: all(one.metrics.replicas_live == 3 for one in replicas))
        await until(lambda: all(one.metrics.replicas_live == 2 for one in replicas))
        clock.advance(59)
        server.pause()
        assert await admitted_by(replicas, 60) == LIMIT * 2 / 3


async def test_a_replica_whose_valkey_goes_as_it_starts_says_so(
    server: RedisServer, clock: MovedClock
) -> None:
    async with a_replica(server, clock) as late:
        server.kill()
        await late.exact(False)
        async with late.joining() as joined:
            await asyncio.sleep(0.1)
            clock.advance(START_SECONDS_MAX + 0.1)
            with pytest.raises(StartError, match="rate store has gone"):
                await joined


async def test_requests_at_a_time_are_shared_out_while_valkey_is_away_and_counted_when_it_is_back(
    server: RedisServer, clock: MovedClock
) -> None:
    async with replicas_of(server, clock, 2) as (one, other):
        server.pause()
        await admitted_by([one, other], 2)
        running = [await replica.begin("acc", 4) for replica in (one, other) for _ in range(4)]
        assert running == [True, True, False, False] * 2
        server.resume()
        clock.set()
        await one.exact()
        await other.exact()
        assert not await one.begin("acc", 4)
        other.limiter.concurrency.leave("acc")
        await other.limiter.state("a", 1)
        assert await one.begin("acc", 4)


async def test_a_place_of_a_share_is_given_back_to_the_share(
    server: RedisServer, clock: MovedClock
) -> None:
    async with replicas_of(server, clock, 2) as (one, other):
        of_valkey = await one.take()
        server.pause()
        await admitted_by([one, other], 2, "b")
        of_share = await one.take()
        await one.limiter.give_back("a", of_valkey.admitted_at)
        await one.limiter.give_back("a", of_share.admitted_at)
        assert await one.admitted(40) == LIMIT // 2
        server.resume()
        clock.set()
        await one.exact()
        await one.limiter.give_back("a", of_share.admitted_at)
        assert (await one.limiter.state("a", LIMIT)).remaining == LIMIT - 1


async def test_a_replica_that_stops_leaves_its_share_to_the_others(
    server: RedisServer, clock: MovedClock
) -> None:
    async with a_replica(server, clock) as one:
        async with a_replica(server, clock):
            await until(lambda: one.metrics.replicas_live == 2)
        with server.client() as client:
            assert client.zcard("tollway:replicas") == 1
        clock.advance(LEASE_SECONDS)
        await until(lambda: one.metrics.replicas_live == 1)


# --- starting -------------------------------------------------------------------------------------


async def test_where_nothing_answers_the_start_is_refused() -> None:
    limiter = ValkeyRateLimiter(f"redis://127.0.0.1:{free_port()}/0", SystemClock(), Metrics())

    with pytest.raises(StartError, match=r"server\.rate_store"):
        await limiter.start(seconds_max=0.1)


async def test_a_wrong_password_is_refused_and_not_told() -> None:
    with a_redis(password="right") as server:
        url = server.url.replace("right", "wrong-one")
        limiter = ValkeyRateLimiter(url, SystemClock(), Metrics())
        with pytest.raises(StartError) as refusal:
            await limiter.start()
        assert "password" in refusal.value.message
        assert "wrong-one" not in refusal.value.message

        clock = MovedClock(server)
        async with a_replica(server, clock) as one:
            assert await one.admitted(40) == LIMIT


async def test_a_cluster_is_refused() -> None:
    with a_redis("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        limiter = ValkeyRateLimiter(server.url, SystemClock(), Metrics())
        with pytest.raises(StartError, match="cluster"):
            await limiter.start()
