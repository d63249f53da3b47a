"""kill -9 at random instants under load: the real process, real sockets and a real disk, with the
upstream in a process of its own that outlives every kill and writes down what it truly sent.

    python -m tests.kill --kills 300

prints what was found when, at the end, the ledger is compared with the upstream's log and with what
each client saw.
"""

import argparse
import json
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec import Struct
from tests.support.fake_upstream import FakeUpstreamProcess
from tests.support.http import BodyCutError, RawClient
from tests.support.server import TollwayServer

CLIENTS = 12
INPUT_TOKENS = 9
CREDITS = 2_000_000_000

CONFIG = """
[limits]
requests_per_minute = 1000000
concurrent_requests = 1000
starting_credits = {credits}

[tiers.parrot]
prompt_rate = 1000000
completion_rate = 2000000

[[upstreams]]
name = "gpu-1"
base_url = "{upstream}"

[[models]]
id = "acme/parrot"
tier = "parrot"
context_length = 100000
max_output_tokens = 4096
default_max_tokens = 1000
upstreams = [{{ name = "gpu-1", model = "parrot-upstream" }}]
"""


class Seen(Struct):
    """What one client saw of one request."""

    tag: str
    streamed: bool
    pace_seconds: float
    tokens: int = 0
    finished: bool = False
    credits: int | None = None


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
        config = CONFIG.format(upstream=upstream.base_url, credits=CREDITS)
        server = TollwayServer(directory / "data", config)
        crowd = Crowd(server)
        restart_seconds = 0.0
        try:
            server.start()
            for number in range(kills):
                crowd.work(Random(seed * 1_000_003 + number))
                long = dice.random() < 0.2
                time.sleep(dice.uniform(2.2, 5.0) if long else dice.uniform(0.02, 1.2))
                server.kill()
                crowd.rest()
                stopped = time.monotonic()
                server.start()
                restart_seconds = max(restart_seconds, time.monotonic() - stopped)
            crowd.work(Random(seed))
            time.sleep(0.5)
            crowd.rest(at_once=False)
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


class Crowd:
    """Clients that ask all the time, as long as there is work."""

    def __init__(self, server: TollwayServer) -> None:
        self.seen: list[Seen] = []
        self._server = server
        self._working = False
        self._threads: list[threading.Thread] = []
        self._shift = 0

    def work(self, dice: Random) -> None:
        self._working = True
        self._shift += 1
        self._threads = [
            threading.Thread(target=self._ask_on, args=(Random(dice.random()), number))
            for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def rest(self, *, at_once: bool = True) -> None:
        """At once: the server is dead, and so is every connection."""
        self._working = False
        for thread in self._threads:
            thread.join(10 if at_once else 60)
            assert not thread.is_alive(), "a client hangs on a dead server"

    def _ask_on(self, dice: Random, number: int) -> None:
        count = 0
        while self._working:
            count += 1
            seen = Seen(
                f"k{self._shift}.{number}.{count}",
                dice.random() < 0.7,
                dice.choice((0.0, 0.001, 0.01, 0.05)),
            )
            self.seen.append(seen)
            try:
                self._ask(seen, dice)
            except (OSError, BodyCutError):
                time.sleep(0.005)

    def _ask(self, seen: Seen, dice: Random) -> None:
        chunks = dice.choice((1, 5, 20, 80))
        directives = {
            "chunks": chunks,
            "input_tokens": INPUT_TOKENS,
            "pace_ms": seen.pace_seconds * 1000,
        }
        fields = {
            "model": "acme/parrot",
            "messages": [{"role": "user", "content": "Say."}],
            "user": json.dumps(directives),
            "stream": seen.streamed,
        }
        with RawClient("127.0.0.1", self._server.port, timeout_seconds=30) as client:
            client.request(
                "POST",
                "/v1/chat/completions",
                json.dumps(fields).encode(),
                ("authorization", f"Bearer {self._server.token}"),
                ("x-request-id", seen.tag),
            )
            if seen.streamed:
                watch(client, seen)
            else:
                reply = client.read_reply()
                if reply.status == 200:
                    usage = reply.json()["usage"]
                    seen.tokens, seen.credits = (
                        usage["completion_tokens"],
                        usage["credits_consumed"],
                    )
                    seen.finished = True


def watch(client: RawClient, seen: Seen) -> None:
    if client.read_head().status != 200:
        return
    while True:
        (event,) = client.read_events(1)
        if event.comment is not None:
            if event.comment.startswith("credits consumed="):
                seen.credits = int(event.comment.split("=")[1].split(" ")[0])
        elif event.data == "[DONE]":
            seen.finished = True
            return
        elif event.json()["choices"][0]["delta"].get("content"):
            seen.tokens += 1


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
