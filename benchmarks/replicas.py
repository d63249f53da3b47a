"""What a request costs with one replica and with two on one Postgres and one Redis, told apart by
who spends it, and how often it asks either of them.

    python -m benchmarks.replicas [--rounds 2] [--secs 5] [--nice -20] [--page]

Each replica is pinned to a core of its own. With one replica all else (Postgres, Redis, the load
and the model's server) is on the other core; with two it runs beside them on both, so that the
requests a second of two replicas are not twice those of one: CPU a request is what says how many
cores would serve how many. Postgres flushes each commit to its disk. Then, without HTTP, how often
a second one account can be charged by one replica, with credit on lease and without. See README.md.
"""

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import os
import re
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import uvloop
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer, a_redis

from benchmarks import charges
from benchmarks.gateways import MODEL, PATH, TOLLWAY, Gateway, Upstream, tollway, upstream
from benchmarks.load import Figures, plain
from benchmarks.machine import machine
from benchmarks.marked import write_between_marks
from benchmarks.processes import (
    GATEWAY_CORE,
    LOAD_CORE,
    cpu_seconds,
    free_port,
    raise_file_limit,
    running,
    take_priority,
)
from tollway.settings import load_settings
from tollway.store import open_operations

PAGE = Path("docs/performance.md")
ACCOUNTS = 256
CREDITS = 10**12
CORES = (GATEWAY_CORE, LOAD_CORE)
DATABASE = "TOLLWAY_BENCH_DATABASE"
CHARGES = ("one account, without leases", "one account, with leases")


# --- what runs ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Installation:
    """`tokens` are one of each account, the first of which is the hot one's."""

    gateways: Sequence[Gateway]
    postgres: PostgresServer
    database: str
    redis: RedisServer
    tokens: Sequence[str]


@contextlib.contextmanager
def installation(
    folder: Path, replicas: int, model: Upstream, program: Sequence[str], accounts: int
) -> Generator[Installation]:
    with PostgresServer(durable=True) as postgres, a_redis() as redis, contextlib.ExitStack() as up:
        database = postgres.new_database()
        cores = {LOAD_CORE} if replicas == 1 else set(CORES)
        for pid in (*postgres_pids(postgres), _pid_of(redis), model.pid):
            with contextlib.suppress(ProcessLookupError):  # a worker of Postgres that has ended
                os.sched_setaffinity(pid, map(int, cores))
        text = TOLLWAY.format(upstream_port=model.port, model=MODEL)
        text = text.replace('"sqlite"', f'"env:{DATABASE}"').replace('"memory"', f'"{redis.url}"')
        settings = folder / "replicas.toml"
        settings.write_text(text)
        env = {DATABASE: postgres.url(database)}
        with patch.dict(os.environ, env):
            tokens = asyncio.run(_tokens(settings, folder / "commands", accounts))
        gateways: list[Gateway] = []
        for number in range(replicas):
            port = free_port()
            places = ["--config", str(settings), "--data-dir", str(folder / f"replica-{number}")]
            process = up.enter_context(
                running(
                    [*program, "serve", *places, "--port", str(port)],
                    core=CORES[number],
                    port=port,
                    log=folder / f"replica-{number}.log",
                    env=env,
                )
            )
            gateways.append(Gateway(f"replica {number}", process.pid, port, model, tokens[0]))
        yield Installation(gateways, postgres, database, redis, tokens)


async def _tokens(settings: Path, data_dir: Path, accounts: int) -> list[str]:
    tokens: list[str] = []
    async with open_operations(load_settings(settings, data_dir=data_dir)) as operations:
        for number in range(accounts):
            account = {"name": f"account-{number}", "credits": CREDITS}
            await operations.execute("account create", account, actor="benchmark")
            issued = await operations.execute(
                "token issue", {"account": account["name"]}, actor="benchmark"
            )
            tokens.append(str(issued["personal_access_token"]))
    return tokens


def postgres_pids(server: PostgresServer) -> list[int]:
    postmaster = charges.postmaster(server)
    return [postmaster.pid, *(child.pid for child in postmaster.children(recursive=True))]


def _pid_of(redis: RedisServer) -> int:
    with redis.client() as client:
        return client.info("server")["process_id"]


# --- what it spends -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spent:
    """Until now: seconds of processor time, requests that were settled, calls of the database's
    batches and of the rate store, bytes of Postgres's log."""

    replicas: float
    postgres: float
    redis: float
    load: float
    requests: float
    database_calls: float
    rate_calls: float
    log_bytes: float

    def since(self, before: "Spent") -> "Spent":
        names = self.__slots__
        return Spent(**{name: getattr(self, name) - getattr(before, name) for name in names})


def spent(of: Installation) -> Spent:
    pages = [_metrics(gateway.port) for gateway in of.gateways]
    postgres, _, log_bytes = charges.figures(of.postgres, of.database)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(
        replicas=sum(cpu_seconds(gateway.pid) for gateway in of.gateways),
        postgres=postgres,
        redis=cpu_seconds(_pid_of(of.redis)),
        load=children.ru_utime + children.ru_stime + cpu_seconds(of.gateways[0].upstream.pid),
        requests=_sum("tollway_settlements_total", pages),
        database_calls=_sum("tollway_commit_batch_size_count", pages),
        rate_calls=_sum("tollway_rate_store_seconds_count", pages),
        log_bytes=log_bytes,
    )


def _metrics(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    try:
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def _sum(name: str, pages: Sequence[str]) -> float:
    found = [re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE) for page in pages]
    return sum(float(value) for values in found for value in values)


def measured(of: Installation, seconds: int, tokens: Path | None) -> Figures:
    """As many requests as go, over 64 connections to each replica. The warm-up counts too."""
    core = LOAD_CORE if len(of.gateways) == 1 else ",".join(CORES)
    before, began = spent(of), time.monotonic()
    with ThreadPoolExecutor(len(of.gateways)) as loads:
        loading = [loads.submit(plain, one, seconds, tokens, core) for one in of.gateways]
        each = [one.result() for one in loading]
    took = time.monotonic() - began
    return _figures(spent(of).since(before), took, len(of.gateways), each)


def one_at_a_time(of: Installation, seconds: float) -> Figures:
    """What a request asks of the database and the rate store where there is nobody to share a call
    with: another account each time, at another replica."""
    connections = [http.client.HTTPConnection("127.0.0.1", one.port) for one in of.gateways]
    turns = zip(itertools.cycle(connections), itertools.cycle(of.tokens), strict=False)
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello."}]})
    took: list[float] = []
    errors = 0
    before, began = spent(of), time.monotonic()
    for connection, token in turns:
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        asked = time.monotonic()
        connection.request("POST", PATH, body, headers)
        answer = connection.getresponse()
        answer.read()
        took.append((time.monotonic() - asked) * 1000)
        errors += answer.status != 200
        if time.monotonic() - began > seconds:
            break
    for connection in connections:
        connection.close()
    seen = {
        "requests_per_second": len(took) / (time.monotonic() - began),
        "p50_ms": statistics.median(took),
        "p99_ms": sorted(took)[int(0.99 * len(took))],
        "errors": errors,
    }
    used, ended = spent(of).since(before), time.monotonic()
    return _figures(used, ended - began, len(of.gateways), [seen])


def _figures(used: Spent, took: float, replicas: int, each: Sequence[Figures]) -> Figures:
    def a_request(amount: float) -> float:
        return amount / max(used.requests, 1)

    ours = used.replicas + used.postgres + used.redis
    return {
        "requests_per_second": sum(one["requests_per_second"] for one in each),
        "p50_ms": sum(one["p50_ms"] for one in each) / len(each),
        "p99_ms": max(one["p99_ms"] for one in each),
        "replica_us": a_request(used.replicas) * 1e6,
        "postgres_us": a_request(used.postgres) * 1e6,
        "redis_us": a_request(used.redis) * 1e6,
        "postgres_share": used.postgres / ours,
        "load_us": a_request(used.load) * 1e6,
        "core_share": used.replicas / took / replicas,
        "database_calls": a_request(used.database_calls),
        "rate_calls": a_request(used.rate_calls),
        "log_bytes": a_request(used.log_bytes),
        "errors": sum(one["errors"] for one in each),
    }


# --- the run --------------------------------------------------------------------------------------

Rounds = dict[str, list[Figures]]
"""By the name of the column."""


def main() -> None:
    chosen = _options()
    raise_file_limit()
    take_priority(chosen.nice)
    program = shlex.split(chosen.tollway)
    rounds: Rounds = {}
    for number in range(chosen.rounds):
        for name, figures in _round(chosen, program, reverse=number % 2 == 1):
            print(f"round {number + 1}, {name}: {figures}", flush=True)
            rounds.setdefault(name, []).append(figures)
    written = f"{report(rounds, chosen.secs)}\n{_charges(chosen.secs)}"
    print(written)
    if chosen.page:
        write_between_marks(PAGE, "replicas", written)
    if any(figures["errors"] for of_case in rounds.values() for figures in of_case):
        raise SystemExit("There were errors: the figures above are not those of a working gateway.")


def _round(
    chosen: argparse.Namespace, program: Sequence[str], *, reverse: bool
) -> Generator[tuple[str, Figures]]:
    for replicas in (2, 1) if reverse else (1, 2):
        with contextlib.ExitStack() as stack:
            prefix = "tollway-bench-"
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
            model = stack.enter_context(upstream(folder))
            if replicas == 1:
                with tollway(folder, model, program) as alone:
                    yield "SQLite", plain(alone, chosen.secs)
            of = stack.enter_context(
                installation(folder, replicas, model, program, chosen.accounts)
            )
            tokens = folder / "tokens"
            tokens.write_text("".join(f"{token}\n" for token in of.tokens))
            named = "1 replica" if replicas == 1 else f"{replicas} replicas"
            if replicas == 1:
                yield f"{named}, one request at a time", one_at_a_time(of, chosen.secs)
            yield f"{named}, {chosen.accounts} accounts", measured(of, chosen.secs, tokens)
            yield f"{named}, one account", measured(of, chosen.secs, None)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.replicas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--secs", type=int, default=5, help="of each test in each round")
    options.add_argument("--accounts", type=int, default=ACCOUNTS)
    options.add_argument("--nice", type=int, default=0, help="-20: the neighbours wait (root)")
    options.add_argument("--page", action="store_true", help=f"write the tables into {PAGE}")
    options.add_argument("--tollway", default=str(Path(sys.executable).with_name("tollway")))
    return options.parse_args()


# --- the tables -----------------------------------------------------------------------------------

ROWS: dict[str, tuple[str, int]] = {
    "replica_us": ("CPU µs a request, in the replica", 0),
    "postgres_us": ("CPU µs a request, in Postgres", 0),
    "redis_us": ("CPU µs a request, in Redis", 1),
    "postgres_share": ("Postgres's share of these three", 2),
    "load_us": ("CPU µs a request, of the load and the model's server", 0),
    "requests_per_second": ("requests/s", 0),
    "core_share": ("share of a replica's core that it used", 2),
    "p50_ms": ("p50 ms", 1),
    "p99_ms": ("p99 ms", 1),
    "database_calls": ("calls of Postgres a request", 3),
    "rate_calls": ("calls of Redis a request", 3),
    "log_bytes": ("bytes of Postgres's log a request", 0),
    "errors": ("errors", 0),
}
HIGHEST = {"requests_per_second", "core_share", "errors"}


def report(rounds: Rounds, seconds: int) -> str:
    # A test of one process without Postgres has fewer figures, and another name for its own.
    for of_case in rounds.values():
        for figures in of_case:
            figures.setdefault("replica_us", figures.get("request_us", 0.0))
    times = max(len(of_case) for of_case in rounds.values())
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {machine()}; the best of {times} rounds, {seconds} s a",
        "test, 64 connections to each replica.",
        "",
        f"|  | {' | '.join(rounds)} |",
        "|---|" + "--:|" * len(rounds),
    ]
    for key, (title, digits) in ROWS.items():
        best = max if key in HIGHEST else min
        cells = [
            f"{best(figures[key] for figures in of_case):,.{digits}f}" if key in of_case[0] else ""
            for of_case in rounds.values()
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _charges(seconds: int) -> str:
    lines = [
        "One account, charged by one replica's ledger without HTTP: a hold and its charge each.",
        "",
        charges.TITLES,
    ]
    for case in charges.CASES:
        if case.name in CHARGES:
            cells = uvloop.run(charges.row(case, seconds))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
