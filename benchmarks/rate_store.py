"""What a place of a rate costs with Valkey (or Redis): its processor time there and here.

    python -m benchmarks.rate_store --seconds 3

Each row is one replica's limiter, asked by so many requests at a time, each of which takes a place
of a chat rate and then leaves, as the gate does. Times are of processor, user and system: of Redis
as it reports them itself, of this process as the kernel does. They say how many one core can serve;
the clock on the wall says little where the cores are shared.
"""

import argparse
import asyncio
import time

import uvloop
import valkey
from tests.support.redis import a_redis

from tollway.clock import SystemClock
from tollway.metrics.counters import Metrics
from tollway.rates.base import CHAT, RateLimiter
from tollway.rates.concurrency import Concurrency
from tollway.rates.memory import MemoryRateLimiter
from tollway.rates.valkey import ValkeyRateLimiter

ACCOUNTS = 1_000
LIMIT = 1_000_000
AT_A_TIME = (1, 8, 64, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    seconds = parser.parse_args().seconds
    print(
        "| store | at a time | us here | us in the store | places a call | places/s a store core |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    for row in uvloop.run(rows(seconds)):
        print(f"| {' | '.join(row)} |")


async def rows(seconds: float) -> list[tuple[str, ...]]:
    clock = SystemClock()
    found: list[tuple[str, ...]] = []
    here, count = await load(MemoryRateLimiter(clock), Concurrency(), 64, seconds)
    found.append(("memory", "64", f"{here / count * 1e6:.2f}", "", "", ""))
    for at_a_time in AT_A_TIME:
        with a_redis() as server, server.client() as client:
            metrics = Metrics()
            limiter = ValkeyRateLimiter(server.url, clock, metrics)
            await limiter.start()
            before = processor_seconds(client)
            here, count = await load(limiter, limiter.concurrency, at_a_time, seconds)
            there = processor_seconds(client) - before
            calls = sum(metrics.rate_store_seconds.counts)
            await limiter.stop()
        found.append(
            (
                "redis",
                str(at_a_time),
                f"{here / count * 1e6:.1f}",
                f"{there / count * 1e6:.1f}",
                f"{count / calls:.1f}",
                f"{count / there:,.0f}",
            )
        )
    return found


async def load(
    limiter: RateLimiter, concurrency: Concurrency, at_a_time: int, seconds: float
) -> tuple[float, int]:
    """Processor seconds of this process, and how many places were taken."""
    end = time.monotonic() + seconds
    count = 0

    async def requests(number: int) -> None:
        nonlocal count
        while time.monotonic() < end:
            account = f"acc_{number % ACCOUNTS:032x}"
            number += at_a_time
            assert concurrency.enter(account, LIMIT)
            take = await limiter.take(CHAT + account, LIMIT)
            assert take.admitted
            concurrency.leave(account)
            count += 1

    before = time.process_time()
    await asyncio.gather(*(requests(number) for number in range(at_a_time)))
    return time.process_time() - before, count


def processor_seconds(client: valkey.Valkey) -> float:
    info = client.info("cpu")
    return info["used_cpu_user"] + info["used_cpu_sys"]


if __name__ == "__main__":
    main()
