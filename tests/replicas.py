"""Three real servers on one real Postgres and one real Redis, one hot account, a thousand cold ones
and one with a low rate, and whatever can break breaks, under load, with the upstream in a process
of its own that writes down what it truly sent:

    python -m tests.replicas --requests 20000
    python -m tests.replicas --measure

The first prints what was found when, at the end, the ledger is compared with the upstream's log and
with what each client saw. The second prints what a hot account can be charged a second, and the
round trips to the database, with credit leases and without.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec import Struct
from tests.integration.postgres_books import PostgresBooks
from tests.kill import judge
from tests.support.crowd import Crowd, Seen, ask_parrot
from tests.support.fake_upstream import FakeUpstreamProcess
from tests.support.in_thread import ServerInThread
from tests.support.postgres import MIGRATOR, SERVER, PostgresServer
from tests.support.redis import RedisServer, a_redis
from tests.support.server import A_CREDIT_A_TOKEN, TollwayServer, config_for
from tests.unit.ledger.books import an_outcome

from tollway.clock import SystemClock
from tollway.errors import RequestError
from tollway.ledger.postgres.leases import LeasePolicy
from tollway.rates.base import WINDOW_SECONDS
from tollway.settings import load_settings
from tollway.store import open_operations

CLIENTS = 16
COLD_ACCOUNTS = 1000
HOT_CREDITS = 10**9
COLD_CREDITS = 30_000
SLOW_LIMIT = 30
SLOW_SHARE = 0.1
SPAN_SECONDS = WINDOW_SECONDS - 0.1
"""What must hold for 60 seconds of Redis's clock is asked of slightly less by ours."""
CALM_SECONDS = 150.0
"""From a fault of the rate store on: the minute in which it recovers, and one that is exact."""
RESTART_SECONDS_MAX = 150.0

STORES = """
[server]
database = "env:TOLLWAY_TEST_DATABASE"
rate_store = "{rates}"
access_log = ""

[limits]
requests_per_minute = 1000000
concurrent_requests = 1000
failed_authentications_per_minute = 1000000
"""


class Report(Struct):
    """`leased` were held from leased credit; `late` requests were settled after their replica had
    been given up; `late_short` credits of those the account could not pay any more, and the
    operator lost. `operator_lost_tokens_max` is what one client was given before a kill and nobody
    paid for. Of the account with a low rate `limited` requests were refused for it, and
    `minute_max` is the most that surely were admitted in one minute: `exact_minute_max` while no
    replica kept to its share."""

    requests: int = 0
    finished: int = 0
    settled: int = 0
    refused: int = 0
    limited: int = 0
    exact_minute_max: int = 0
    minute_max: int = 0
    leased: int = 0
    recovered: int = 0
    late: int = 0
    late_short: int = 0
    lost: int = 0
    double: int = 0
    overspent: int = 0
    violations: int = 0
    open_holds_left: int = 0
    operator_lost_tokens_max: int = 0
    faults: str = ""
    seconds: float = 0.0


def break_replicas(
    requests: int, seed: int, directory: Path, *, stops: int = 2, hot: float = 0.5
) -> tuple[Report, list[str]]:
    """Breaks things until as many requests were made, lets all come back, and judges. `stops` are
    replicas that are stopped for longer than their lease lasts, `hot` the share of one account."""
    began = time.monotonic()
    dice = Random(seed)
    with (
        PostgresServer(durable=True) as postgres,
        a_redis() as redis,
        FakeUpstreamProcess(directory / "upstream.log") as upstream,
    ):
        name = postgres.new_database()
        stores = STORES.format(rates=redis.url)
        config = config_for(upstream.base_url, rates=A_CREDIT_A_TOKEN, more=stores)
        with Wire(postgres.port) as wire:
            url = postgres.url(name).replace(f":{postgres.port}/", f":{wire.port}/")
            replicas = [
                TollwayServer(directory / f"r{n}", config, env={"TOLLWAY_TEST_DATABASE": url})
                for n in range(3)
            ]
            slow, *tokens = _accounts(replicas[0], url)
            for replica in replicas:
                replica.start()
            crowd = Clients(replicas, tokens, slow, hot)
            faults = Faults(postgres, name, redis, replicas, wire, dice)
            crowd.work(Random(seed))
            try:
                faults.happen(lambda: crowd.finished < requests, stops)
            finally:
                faults.mend()
                time.sleep(3)
                crowd.rest()
                _wait_for_peace(postgres, name)
                for replica in replicas:
                    replica.stop(60)
                    faults.note_shares(replica)
            verified = replicas[0].command("ledger", "verify")
        report, complaints = _judged(postgres, name, crowd.seen, upstream.records())
        report.refused, report.limited = crowd.refused, crowd.limited
        report.exact_minute_max, report.minute_max = fullest_minutes(
            _admitted(crowd.slow_sent, upstream.records()), faults.shares
        )
        if report.exact_minute_max > SLOW_LIMIT or report.minute_max > 2 * SLOW_LIMIT:
            complaints.append(f"a minute with a limit of {SLOW_LIMIT} had more: {report}")
        if verified.status != 0:
            report.violations = len(verified.stdout.splitlines())
            complaints.append(verified.stdout + verified.stderr)
        report.faults = ", ".join(f"{kind} {n}" for kind, n in sorted(faults.happened.items()))
        report.seconds = round(time.monotonic() - began, 1)
    return report, complaints


def _accounts(server: TollwayServer, url: str) -> list[str]:
    """A token of each account: of that with a low rate, of the hot one, and of the cold ones."""
    os.environ["TOLLWAY_TEST_DATABASE"] = url
    settings = load_settings(server.config, data_dir=server.data_dir, for_serving=False)

    async def make() -> list[str]:
        tokens: list[str] = []
        async with open_operations(settings) as operations:
            cold = {f"cold-{number}": COLD_CREDITS for number in range(COLD_ACCOUNTS)}
            for name, credits in {"slow": HOT_CREDITS, "hot": HOT_CREDITS, **cold}.items():
                await operations.execute(
                    "account create", {"name": name, "credits": credits}, actor="tests"
                )
                issued = await operations.execute("token issue", {"account": name}, actor="tests")
                tokens.append(str(issued["personal_access_token"]))
            limits = {"name": "slow", "requests_per_minute": SLOW_LIMIT}
            await operations.execute("account set", limits, actor="tests")
        return tokens

    return asyncio.run(make())


# --- what breaks ----------------------------------------------------------------------------------


class Faults:
    """`shares` are the times, by `time.monotonic`, in which some replica kept to its share of each
    rate, as it said itself."""

    def __init__(
        self,
        postgres: PostgresServer,
        database: str,
        redis: RedisServer,
        replicas: Sequence[TollwayServer],
        wire: "Wire",
        dice: Random,
    ) -> None:
        self._postgres = postgres
        self._database = database
        self._redis = redis
        self._replicas = replicas
        self._starting: dict[int, threading.Thread] = {}
        self._wire = wire
        self._dice = dice
        self.happened: Counter[str] = Counter()
        self.shares: list[tuple[float, float]] = []
        self._calm_until = 0.0

    def happen(self, going_on: Callable[[], bool], stops: int) -> None:
        """Everything once, and then anything."""
        kinds: list[tuple[str, Callable[[], None], int]] = [
            ("replica killed", self._kill_replica, 4),
            ("postgres stopped at once", self._stop_postgres, 2),
            ("backends killed", self._kill_backends, 4),
            ("answers cut off", self._wire.cut, 6),
            ("database clock stepped", self._step_clock, 1),
            ("rate store killed", self._kill_redis, 1),
            ("rate store hung", self._hang_redis, 1),
        ]
        weights = [weight for _, _, weight in kinds]
        first = self._dice.sample(kinds, len(kinds))
        while going_on() or first:
            time.sleep(self._dice.uniform(0.2, 1.5))
            if stops > 0 and self._dice.random() < 0.1:
                stops -= 1
                self._stop_replica()
                self.happened["replica stopped past its lease"] += 1
                continue
            ((kind, fault, _),) = [first.pop()] if first else self._dice.choices(kinds, weights)
            if kind.startswith("rate store") and not self._may_break_rates(first):
                continue
            fault()
            self.happened[kind] += 1
        for _ in range(stops):
            self._stop_replica()
            self.happened["replica stopped past its lease"] += 1

    def _may_break_rates(self, first: Sequence[object]) -> bool:
        """Every other time it is then left alone for so long that some minutes are exact."""
        now = time.monotonic()
        if now < self._calm_until:
            return False
        if not first and self._dice.random() < 0.5:
            self._calm_until = now + CALM_SECONDS
        return True

    def mend(self) -> None:
        self._set_clock(0)
        for thread in self._starting.values():
            thread.join(RESTART_SECONDS_MAX)
            assert not thread.is_alive(), "a replica does not start"

    def note_shares(self, replica: TollwayServer) -> None:
        """Of the life of a replica that has ended."""
        behind = time.time() - time.monotonic()
        self.shares += times_of_shares(replica.stderr.splitlines(), time.time(), behind)

    def _up(self) -> list[TollwayServer]:
        self._starting = {n: one for n, one in self._starting.items() if one.is_alive()}
        return [one for n, one in enumerate(self._replicas) if n not in self._starting]

    def _kill_replica(self) -> None:
        up = self._up()
        while len(up) < 2:  # one always serves
            time.sleep(0.2)
            up = self._up()
        replica = self._dice.choice(up)
        replica.kill()
        self.note_shares(replica)
        time.sleep(self._dice.uniform(0, 1))
        starting = threading.Thread(target=_start_again, args=(replica,))
        self._starting[self._replicas.index(replica)] = starting
        starting.start()

    def _stop_replica(self) -> None:
        replica = self._dice.choice(self._up())
        replica.signal(signal.SIGSTOP)
        time.sleep(22)
        replica.signal(signal.SIGCONT)

    def _kill_redis(self) -> None:
        self._redis.kill()
        time.sleep(self._dice.uniform(0, 2))
        self._redis.start()

    def _hang_redis(self) -> None:
        self._redis.pause()
        time.sleep(self._dice.uniform(0.5, 2))
        self._redis.resume()

    def _stop_postgres(self) -> None:
        self._postgres.stop(signal.SIGQUIT)
        time.sleep(self._dice.uniform(0, 2))
        self._postgres.start()

    def _kill_backends(self) -> None:
        with self._postgres.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s",
                (SERVER,),
            )

    def _step_clock(self) -> None:
        """A day either way, as the ledger's statements see it, and back."""
        self._set_clock(self._dice.choice((-1, 1)) * 86_400_000)
        time.sleep(1)
        self._set_clock(0)

    def _set_clock(self, ahead_ms: int) -> None:
        with self._postgres.connect(self._database) as connection:
            connection.execute(_CLOCK.format(ahead_ms).encode())
            connection.execute(f"ALTER FUNCTION now_ms() OWNER TO {MIGRATOR}".encode())


_CLOCK = """
CREATE OR REPLACE FUNCTION now_ms() RETURNS BIGINT LANGUAGE sql VOLATILE AS
'SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint + ({})'"""


def _start_again(replica: TollwayServer) -> None:
    """As often as it takes, as a supervisor does: what it needs may be down just now."""
    deadline = time.monotonic() + RESTART_SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            replica.start(RESTART_SECONDS_MAX)
            return
        except AssertionError:
            time.sleep(0.5)


class Wire(ServerInThread):
    """Between the replicas and Postgres. `cut` lets what was asked through and drops the answer:
    what was to be committed is, and nobody is told."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._to = port
        self.port = 0
        self._armed: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(lambda: self._armed.update(self._open))

    async def begin(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)  # else nobody may have hold of it
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(asyncio.CancelledError):
            await self._carry(reader, writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        self._open.add(writer)
        back = asyncio.ensure_future(self._answers(server_reader, writer))
        try:
            while data := await reader.read(65536):
                server.write(data)
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            server.close()
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if writer in self._armed:
                    break
                writer.write(data)
        except OSError:
            pass
        finally:
            self._armed.discard(writer)
            writer.transport.abort()


# --- who asks -------------------------------------------------------------------------------------


class Clients(Crowd):
    """Each time of any replica. `slow_sent` is when a request of the account with a low rate was
    sent, by its tag."""

    def __init__(
        self, replicas: Sequence[TollwayServer], tokens: Sequence[str], slow: str, hot: float
    ) -> None:
        super().__init__(CLIENTS)
        self.slow_sent: dict[str, float] = {}
        self.refused = 0
        self.limited = 0
        self.finished = 0
        self._replicas = replicas
        self._tokens = tokens
        self._slow = slow
        self._hot = hot

    def make(self, name: str, dice: Random) -> Seen:
        pace = dice.choice((0.0, 0.0, 0.0, 0.001, 0.05))
        return Seen(f"c{name}", dice.random() < 0.5, pace)

    def ask(self, seen: Seen, dice: Random) -> None:
        hot = dice.random() < self._hot
        slow = dice.random() < SLOW_SHARE
        token = self._tokens[0] if hot else dice.choice(self._tokens)
        if slow:
            token = self._slow
            self.slow_sent[seen.tag] = time.monotonic()
        chunks = dice.choice((1, 5, 20, 40 if seen.pace_seconds else 5))
        port = dice.choice(self._replicas).port
        try:
            ask_parrot(port, token, seen, chunks=chunks, timeout_seconds=45)
            self.limited += slow and not seen.finished
            self.refused += not slow and not seen.finished
        finally:
            self.finished += seen.finished
            if not seen.finished:
                time.sleep(0.02)


# --- judging --------------------------------------------------------------------------------------


def _wait_for_peace(postgres: PostgresServer, database: str) -> None:
    """Until the journals are applied and what nobody has any more has ended."""
    deadline = time.monotonic() + 60
    with postgres.connect(database) as connection:
        while connection.execute("SELECT 1 FROM holds WHERE state = 'open' LIMIT 1").fetchone():
            if time.monotonic() > deadline:
                return
            time.sleep(0.2)


def _judged(
    postgres: PostgresServer,
    database: str,
    seen: Sequence[Seen],
    records: Sequence[dict[str, Any]],
) -> tuple[Report, list[str]]:
    rows: dict[str, list[tuple[Any, ...]]] = {}
    report = Report()
    with postgres.connect(database) as connection:
        settled: list[Any] = connection.execute(_SETTLED).fetchall()
        for tag, id_, charged, late, shortfall, source, tokens, leased in settled:
            report.leased += leased
            rows.setdefault(tag, []).append((id_, charged, source, tokens))
            report.late += bool(late)
            report.late_short += shortfall
        row = connection.execute("SELECT count(*) FROM holds WHERE state = 'open'").fetchone()
    assert row is not None
    report.open_holds_left = int(str(row[0]))
    killed = judge(rows, seen, records)
    figures = killed.figures
    report.requests, report.finished = figures.requests, figures.finished
    report.settled, report.recovered = figures.settled, figures.recovered
    report.lost, report.double = figures.seen_and_lost, figures.double
    report.overspent = figures.overspent
    report.operator_lost_tokens_max = figures.operator_lost_tokens_max
    return report, killed.complaints


_SETTLED: Any = """
SELECT u.client_request_id, h.id, h.charged + h.late, h.late, h.shortfall, u.source,
       u.completion_tokens, h.expires_at IS NULL
  FROM usage u JOIN holds h ON h.id = u.request_id"""


def _admitted(
    sent: Mapping[str, float], records: Sequence[dict[str, Any]]
) -> list[tuple[float, float]]:
    """When each was sent and had come to the upstream: it was admitted between these."""
    arrived: dict[str, float] = {}
    for record in records:
        tag = json.loads(record["user"])["tag"]
        if tag in sent:
            arrived[tag] = min(record["received_at"], arrived.get(tag, float("inf")))
    return [(sent[tag], at) for tag, at in arrived.items()]


def fullest_minutes(
    admitted: Sequence[tuple[float, float]], shares: Sequence[tuple[float, float]]
) -> tuple[int, int]:
    """The most that one minute surely had, in which no replica kept to its share, and in any."""
    exact_most = most = 0
    for start, _ in admitted:
        end = start + SPAN_SECONDS
        count = sum(sent >= start and arrived <= end for sent, arrived in admitted)
        most = max(most, count)
        if not any(began <= end and ended >= start for began, ended in shares):
            exact_most = max(exact_most, count)
    return exact_most, most


def times_of_shares(
    lines: Sequence[str], died_at: float, behind: float
) -> list[tuple[float, float]]:
    """From what a replica wrote by the wall clock, which is `behind` seconds ahead of ours."""
    times: list[tuple[float, float]] = []
    began: float | None = None
    for line in lines:
        if "rates are not counted over all" in line:
            began = _written_at(line) - behind
        elif "rates are counted over all" in line and began is not None:
            times.append((began, _written_at(line) - behind))
            began = None
    return times if began is None else [*times, (began, died_at - behind)]


def _written_at(line: str) -> float:
    seconds, _, milliseconds = line[:23].partition(",")
    return time.mktime(time.strptime(seconds, "%Y-%m-%d %H:%M:%S")) + int(milliseconds) / 1000


# --- measuring ------------------------------------------------------------------------------------


class Measured(Struct):
    requests: int
    charges_a_second: float
    round_trips_a_request: float


async def measure(directory: Path, policy: LeasePolicy, seconds: float, at_once: int) -> Measured:
    """One replica's ledger and one account, `at_once` requests at a time, each a hold and its
    settlement, on a Postgres that syncs each commit."""
    with PostgresServer(durable=True) as postgres:
        name = postgres.new_database()
        books = await PostgresBooks(
            postgres.url(name),
            directory / "data",
            policy=policy,
            clock=SystemClock(),  # pyright: ignore[reportArgumentType] (it is a clock)
            poll_seconds=0.5,
        ).open()
        account = await books.account(10**12)
        await books.ledger.refresh(account)
        count = 0
        ends = time.monotonic() + seconds

        async def ask_on() -> None:
            nonlocal count
            while time.monotonic() < ends:
                try:
                    hold = await books.hold(account, 4100)
                except RequestError:
                    continue
                await asyncio.sleep(0.002)
                await books.ledger.settle(hold, an_outcome(700))
                count += 1

        before, began = books.ledger.round_trips, time.monotonic()
        await asyncio.gather(*(ask_on() for _ in range(at_once)))
        taken = time.monotonic() - began
        round_trips = books.ledger.round_trips - before
        assert await books.balance(account) == 10**12 - 700 * count
        assert await books.violations() == []
        await books.close()
    return Measured(count, round(count / taken, 1), round(round_trips / max(1, count), 3))


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.replicas", description=__doc__)
    options.add_argument("--requests", type=int, default=20_000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--stops", type=int, default=2)
    options.add_argument("--hot", type=float, default=0.5)
    options.add_argument("--measure", action="store_true")
    options.add_argument("--seconds", type=float, default=10.0)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        if chosen.measure:
            for at_once in (1, 16, 64, 256):
                for what, policy in (("without leases", LeasePolicy(0)), ("leases", LeasePolicy())):
                    measuring = measure(
                        directory / f"{at_once}{what[:4]}", policy, chosen.seconds, at_once
                    )
                    (directory / f"{at_once}{what[:4]}").mkdir()
                    measured = asyncio.run(measuring)
                    sys.stdout.write(f"{at_once:4} at a time, {what:15} {measured}\n")
            return 0
        report, complaints = break_replicas(
            chosen.requests, chosen.seed, directory, stops=chosen.stops, hot=chosen.hot
        )
    for name, value in msgspec.structs.asdict(report).items():
        sys.stdout.write(f"{name:28} {value}\n")
    for complaint in complaints[:50]:
        sys.stdout.write(f"{complaint}\n")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
