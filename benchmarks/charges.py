"""What a charge costs with Postgres: processor time there and in the replica, how many share a
transaction, and bytes in the write-ahead log.

    python -m benchmarks.charges --seconds 3

Each row is one replica's ledger: so many requests at a time, each of which holds credit and is then
settled. Postgres runs on this machine and flushes each commit to its disk. Times are of processor,
user and system, of all of Postgres's processes and of this one; the clock on the wall says little
where the cores are shared, and the charges a second are a floor.
"""

import argparse
import asyncio
import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop
from tests.integration.postgres_books import PostgresBooks
from tests.support.postgres import PostgresServer

from tollway.clock import SystemClock
from tollway.ledger.postgres.leases import LeasePolicy

CREDITS = 10**12


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    accounts: int
    at_a_time: int
    policy: LeasePolicy


LEASED, NOT_LEASED = LeasePolicy(), LeasePolicy(busy_holds=0)
CASES = (
    Case("1,000 accounts", 1_000, 64, LEASED),
    Case("1,000 accounts", 1_000, 512, LEASED),
    Case("one account, without leases", 1, 64, NOT_LEASED),
    Case("one account, with leases", 1, 64, LEASED),
    Case("one account, with leases", 1, 512, LEASED),
)

TITLES = """\
| | at a time | us in Postgres | us here | charges a transaction | bytes of log | charges/s |
|---|--:|--:|--:|--:|--:|--:|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    seconds = parser.parse_args().seconds
    print(TITLES)
    for case in CASES:
        print(f"| {' | '.join(uvloop.run(row(case, seconds)))} |")


async def row(case: Case, seconds: float) -> tuple[str, ...]:
    with PostgresServer(durable=True) as server, tempfile.TemporaryDirectory() as folder:
        name = server.new_database()
        clock = SystemClock()
        books = PostgresBooks(
            server.url(name),
            Path(folder) / "data",
            policy=case.policy,
            clock=clock,  # pyright: ignore[reportArgumentType] -- the real one, here
            poll_seconds=1.0,
        )
        await books.open()
        accounts = [
            await books.account(CREDITS, f"acc_{number}") for number in range(case.accounts)
        ]
        charges = 0
        end = time.monotonic() + seconds

        async def requests(number: int) -> None:
            nonlocal charges
            while time.monotonic() < end:
                account = accounts[number % case.accounts]
                number += case.at_a_time
                await books.charge(account, 30, cost=11)
                charges += 1

        await asyncio.gather(*(requests(number) for number in range(case.at_a_time)))
        charges, end = 0, time.monotonic() + seconds
        before = figures(server, name)
        here, began = time.process_time(), time.monotonic()
        await asyncio.gather(*(requests(number) for number in range(case.at_a_time)))
        took, here = time.monotonic() - began, time.process_time() - here
        after = figures(server, name)
        there, transactions, log = (late - early for late, early in zip(after, before, strict=True))
        await books.close()
    return (
        case.name,
        str(case.at_a_time),
        f"{there / charges * 1e6:.0f}",
        f"{here / charges * 1e6:.0f}",
        f"{charges / transactions:.1f}",
        f"{log / charges:,.0f}",
        f"{charges / took:,.0f}",
    )


def figures(server: PostgresServer, database: str) -> tuple[float, float, float]:
    """Processor seconds of all its processes, transactions of the database, bytes of its log."""
    with server.connect(database) as connection:
        rows = connection.execute(
            "SELECT xact_commit, pg_current_wal_lsn() - '0/0' FROM pg_stat_database "
            "WHERE datname = current_database()"
        ).fetchone()
    assert rows is not None
    root = postmaster(server)
    times = root.cpu_times()
    busy = times.user + times.system + times.children_user + times.children_system
    for process in root.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # then it is among the postmaster's
            times = process.cpu_times()
            busy += times.user + times.system
    return busy, float(str(rows[0])), float(str(rows[1]))


def postmaster(server: PostgresServer) -> psutil.Process:
    (found,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if f"port={server.port}" in (process.info["cmdline"] or [])
        and "postgres" in process.info["cmdline"][0]
    ]
    return found


if __name__ == "__main__":
    main()
