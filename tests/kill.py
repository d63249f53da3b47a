"""kill -9 at random instants under load: the real process, real sockets and a real disk, with the
upstream in a process of its own that outlives every kill and writes down what it truly sent.

    python -m tests.kill --kills 300

prints what was found when, at the end, the ledger is compared with the upstream's log and with what
each client saw.
"""

import argparse
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec import Struct
from tests.support.crowd import INPUT_TOKENS, Crowd, Seen, ask_parrot
from tests.support.fake_upstream import FakeUpstreamProcess
from tests.support.server import A_CREDIT_A_TOKEN, TollwayServer, config_for

CLIENTS = 12
CREDITS = 2_000_000_000

LIMITS = f"""
[limits]
requests_per_minute = 1000000
concurrent_requests = 1000
starting_credits = {CREDITS}
"""


class Figures(Struct):
    """`operator_lost_tokens_max` is what one client was given before a kill and nobody paid for."""

    kills: int = 0
    requests: int = 0
    finished: int = 0
    settled: int = 0
    recovered: int = 0
    seen_and_lost: int = 0
    double: int = 0
    overspent: int = 0
    violations: int = 0
    operator_lost_tokens_max: int = 0
    operator_lost_seconds_max: float = 0.0
    restart_seconds_max: float = 0.0
    seconds: float = 0.0


@dataclass
class Killed:
    figures: Figures
    complaints: list[str] = field(default_factory=list[str])


def kill_under_load(kills: int, seed: int, directory: Path) -> Killed:
    """Kills as often as asked, lets the last life end well, and judges."""
    began = time.monotonic()
    dice = Random(seed)
    log = directory / "upstream.log"
    with FakeUpstreamProcess(log) as upstream:
        config = config_for(upstream.base_url, rates=A_CREDIT_A_TOKEN, more=LIMITS)
        server = TollwayServer(directory / "data", config)
        crowd = Clients(server)
        restart_seconds = 0.0
        try:
            server.start()
            for number in range(kills):
                crowd.work(Random(seed * 1_000_003 + number))
                long = dice.random() < 0.2
                time.sleep(dice.uniform(2.2, 5.0) if long else dice.uniform(0.02, 1.2))
                server.kill()
                crowd.rest(10)  # the server is dead, and so is every connection
                stopped = time.monotonic()
                server.start()
                restart_seconds = max(restart_seconds, time.monotonic() - stopped)
            crowd.work(Random(seed))
            time.sleep(0.5)
            crowd.rest()
        finally:
            server.stop()
    verified = server.command("ledger", "verify")
    rows = _rows(directory / "data" / "tollway.db")
    killed = judge(rows, crowd.seen, upstream.records())
    if verified.status != 0:
        killed.figures.violations = len(verified.stdout.splitlines())
        killed.complaints.append(verified.stdout)
    killed.figures.kills = kills
    killed.figures.restart_seconds_max = round(restart_seconds, 2)
    killed.figures.seconds = round(time.monotonic() - began, 1)
    return killed


class Clients(Crowd):
    """Of the one server. `shift` is how often it was started."""

    def __init__(self, server: TollwayServer) -> None:
        super().__init__(CLIENTS)
        self._server = server
        self._shift = 0

    def work(self, dice: Random) -> None:
        self._shift += 1
        super().work(dice)

    def make(self, name: str, dice: Random) -> Seen:
        streamed = dice.random() < 0.7
        return Seen(f"k{self._shift}.{name}", streamed, dice.choice((0.0, 0.001, 0.01, 0.05)))

    def ask(self, seen: Seen, dice: Random) -> None:
        chunks = dice.choice((1, 5, 20, 80))
        port, token = self._server.port, self._server.token
        ask_parrot(port, token, seen, chunks=chunks, timeout_seconds=30)


# --- judging --------------------------------------------------------------------------------------


Rows = Mapping[str, list[tuple[Any, ...]]]
"""By a client's name for its request: id, charge, source and output tokens of each that was settled
under that name. Any: columns."""


def judge(rows: Rows, seen: Iterable[Seen], records: Iterable[dict[str, Any]]) -> Killed:
    killed = Killed(Figures())
    sent = _sent_tokens(records)
    for one in seen:
        killed.figures.requests += 1
        killed.figures.finished += one.finished
        of_tag = rows.get(one.tag, [])
        _judge_one(killed, one, of_tag, sent)
    return killed


def _judge_one(
    killed: Killed, seen: Seen, rows: list[tuple[Any, ...]], sent: dict[str, int]
) -> None:
    figures = killed.figures
    if len(rows) > 1:
        figures.double += 1
        killed.complaints.append(f"{seen.tag} was settled {len(rows)} times")
    charged_tokens = 0
    for request_id, charged, source, output_tokens in rows:
        figures.settled += 1
        figures.recovered += source == "checkpoint"
        charged_tokens = output_tokens
        # What the upstream began to send is the most that a client can have been given.
        if charged > (INPUT_TOKENS + 2 * sent.get(request_id, 0)) or (
            output_tokens > sent.get(request_id, 0)
        ):
            figures.overspent += 1
            killed.complaints.append(
                f"{seen.tag}: {charged} for {output_tokens} tokens, {sent.get(request_id)} sent"
            )
    due = INPUT_TOKENS + 2 * seen.tokens
    if seen.finished and [row[1] for row in rows] != [due]:
        figures.seen_and_lost += 1
        killed.complaints.append(f"{seen.tag} was seen finished for {due}; charged: {rows}")
    if seen.credits is not None and [row[1] for row in rows] != [seen.credits]:
        figures.seen_and_lost += 1
        killed.complaints.append(f"{seen.tag} was told {seen.credits}; charged: {rows}")
    lost = max(0, seen.tokens - charged_tokens)
    figures.operator_lost_tokens_max = max(figures.operator_lost_tokens_max, lost)
    seconds = round(lost * seen.pace_seconds, 2)
    figures.operator_lost_seconds_max = max(figures.operator_lost_seconds_max, seconds)


def _sent_tokens(records: Iterable[dict[str, Any]]) -> dict[str, int]:
    """By our request's id; the more generous where it was sent twice."""
    sent: dict[str, int] = {}
    for record in records:
        id_, tokens = str(record["request_id"]), int(record["content_tokens_started"])
        sent[id_] = max(sent.get(id_, 0), tokens)
    return sent


def _rows(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    rows: dict[str, list[tuple[Any, ...]]] = {}
    with closing(sqlite3.connect(database)) as connection:
        for tag, *row in connection.execute(
            "SELECT u.client_request_id, h.id, h.charged + h.late, u.source, u.completion_tokens"
            " FROM usage u JOIN holds h ON h.id = u.request_id"
        ):
            rows.setdefault(tag, []).append(tuple(row))
    return rows


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    options.add_argument("--kills", type=int, default=300)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        killed = kill_under_load(chosen.kills, chosen.seed, Path(directory))
    for name, value in msgspec.structs.asdict(killed.figures).items():
        sys.stdout.write(f"{name:28} {value}\n")
    for complaint in killed.complaints[:50]:
        sys.stdout.write(f"{complaint}\n")
    return bool(killed.complaints)


if __name__ == "__main__":
    sys.exit(main())
