"""Load of every kind for as long as one likes, and then the question what is left of it.

    python -m tests.soak --minutes 10

Clients ask for streams and whole replies, leave at any moment, set deadlines of their own, send
keys again and make mistakes, in front of three upstreams of one model: one well, two that fail in
every way. The configuration is reloaded all the while. Each minute the load rests, and the real
process must be as it was: no hold, no request in flight, no place at an upstream, no task, no
socket beyond those that it began with and the connections that it keeps to upstreams. Its memory
must not go on growing.
"""

import argparse
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import psutil
from msgspec import Struct
from tests.support.answers import Answer, error, error_event, hang, openai_error, reply, stream
from tests.support.builders import message
from tests.support.customer import Customer, a_customer
from tests.support.fake_upstream import Exchange, FakeUpstream
from tests.support.http import BodyCutError, RawClient
from tests.support.server import TollwayServer, parrot

CLIENTS = 12
REST_SECONDS_MAX = 20.0
RELOAD_SECONDS = 5.0
WARM_UP_ROUNDS = 3
MEMORY_GROWTH_MIB_MAX = 1.0  # a minute, after the warm-up
FILES_GROWTH_MAX = 8  # each thread that reads the database keeps it open

CONFIG = (
    parrot('[{{ name = "well" }}, {{ name = "ill-1" }}, {{ name = "ill-2" }}]')
    + """
[limits]
requests_per_minute = 1000000
other_requests_per_minute = 1000000
failed_authentications_per_minute = 1000000
concurrent_requests = 1000

[[upstreams]]
name = "well"
base_url = "{well}"
concurrent_requests = 8
first_byte_seconds = 2
between_chunks_seconds = 1

[[upstreams]]
name = "ill-1"
base_url = "{ill_1}"
concurrent_requests = 4
first_byte_seconds = {seconds}
between_chunks_seconds = 1

[[upstreams]]
name = "ill-2"
base_url = "{ill_2}"
first_byte_seconds = 2
between_chunks_seconds = 1
circuit_failures = 0
"""
)

EXPECTED = {200, 400, 401, 404, 409, 422, 502, 503, 504}


class Rest(Struct):
    """The process while nobody asks anything. `sockets` are those of the network that are no
    connection to an upstream, `files` all other descriptors."""

    seconds: float
    rss_mib: float
    tasks: int
    sockets: int
    files: int
    holds: int
    in_flight: int
    places: int

    def leaks_since(self, first: "Rest") -> Iterator[str]:
        for name in ("holds", "in_flight", "places"):
            if (left := getattr(self, name)) != 0:
                yield f"{left} {name} are left after {self.seconds:.0f} s"
        for name in ("tasks", "sockets"):
            before, now = getattr(first, name), getattr(self, name)
            if now > before:
                yield f"{now} {name} after {self.seconds:.0f} s, where there were {before}"
        if self.files > first.files + FILES_GROWTH_MAX:
            yield f"{self.files} files after {self.seconds:.0f} s, where there were {first.files}"


@dataclass
class Soaked:
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter[int])
    ends: Counter[str] = field(default_factory=Counter[str])
    reloads: int = 0
    rests: list[Rest] = field(default_factory=list[Rest])
    complaints: list[str] = field(default_factory=list[str])

    @property
    def requests(self) -> int:
        return self.ends.total()

    @property
    def growth_mib_per_minute(self) -> float:
        """By the rests after the warm-up; 0 where there are fewer than two."""
        warm = self.rests[WARM_UP_ROUNDS:]
        if len(warm) < 2:
            return 0.0
        return (warm[-1].rss_mib - warm[0].rss_mib) * 60 / (warm[-1].seconds - warm[0].seconds)


def soak(
    seconds: float,
    directory: Path,
    *,
    seed: int = 1,
    round_seconds: float = 60.0,
    tell: Callable[[str], None] = lambda _: None,
) -> Soaked:
    soaked = Soaked()
    with ExitStack() as stack:
        upstreams = [stack.enter_context(FakeUpstream()) for _ in range(3)]
        faults = Random(seed)
        for upstream, ill in zip(upstreams, (False, True, True), strict=True):
            upstream.answer_with(lambda exchange, ill=ill: _answer(exchange, faults, ill=ill))
        text = _config(upstreams, 2)
        server = stack.enter_context(TollwayServer(directory / "data", text))
        customer = a_customer(server, credits=10**12)
        for number in range(20):  # what a process makes once, it has made by then
            _ask(customer, Random(number))
        first = _rest(server, upstreams, time.monotonic())
        soaked.complaints += first.leaks_since(first)
        began = time.monotonic()
        crowd = _Crowd(customer, soaked)
        number = 0
        while (left := seconds - (time.monotonic() - began)) > 0:
            number += 1
            crowd.work(Random(seed * 1_000_003 + number))
            _reload_now_and_then(server, upstreams, min(left, round_seconds), soaked)
            crowd.rest()
            rest = _rest(server, upstreams, began)
            soaked.rests.append(rest)
            soaked.complaints += rest.leaks_since(first)
            tell(f"{rest.seconds:6.0f} s {soaked.requests:8d} requests  {_shown(rest)}")
            for upstream in upstreams:
                upstream.exchanges.clear()
        soaked.seconds = time.monotonic() - began
        verified = server.command("ledger", "verify")
        if verified.status != 0:
            soaked.complaints.append(verified.stdout + verified.stderr)
        faults_told = [line for line in server.stderr.splitlines() if "fault of the prog" in line]
        soaked.complaints += faults_told[:5]
    unexpected = soaked.statuses.keys() - EXPECTED
    if unexpected:
        soaked.complaints.append(f"statuses that nothing explains: {unexpected}")
    if soaked.growth_mib_per_minute > MEMORY_GROWTH_MIB_MAX:
        soaked.complaints.append(f"memory grows by {soaked.growth_mib_per_minute:.2f} MiB a minute")
    return soaked


def _config(upstreams: list[FakeUpstream], seconds: int) -> str:
    well, ill_1, ill_2 = (upstream.base_url for upstream in upstreams)
    return CONFIG.format(well=well, ill_1=ill_1, ill_2=ill_2, seconds=seconds)


def _reload_now_and_then(
    server: TollwayServer, upstreams: list[FakeUpstream], seconds: float, soaked: Soaked
) -> None:
    """One upstream is another one each time: the one before has requests to end."""
    assert server.config is not None
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, RELOAD_SECONDS))
        soaked.reloads += 1
        server.config.write_text(_config(upstreams, 2 + soaked.reloads % 3))
        server.operate("reload")


# --- the upstreams --------------------------------------------------------------------------------


def _answer(exchange: Exchange, dice: Random, *, ill: bool) -> Answer:
    words = ["word "] * dice.randint(1, 40)
    if exchange.asked.streamed:
        pace = dice.choice((0.0, 0.002, 0.01))
        good = stream(words, input_tokens=9, pace_seconds=pace)
    else:
        good = reply("".join(words), input_tokens=9).delayed(dice.choice((0.0, 0.01, 0.05)))
    if not ill or dice.random() < 0.4:
        return good
    streamed = exchange.asked.streamed
    at = dice.randint(0, 3000)
    faults = (
        lambda: openai_error(500, "No."),
        lambda: openai_error(503, "Busy.", ("Retry-After", "1")),
        lambda: openai_error(429, "Slow down.", ("Retry-After", "1")),
        lambda: openai_error(401, "Who?"),
        lambda: error(302, "", ("Location", "http://127.0.0.1:1/")),
        lambda: error(200, "<html>"),
        lambda: good.cut_at(at),
        lambda: good.reset_at(at),
        lambda: good.closing(announced=False),
        lambda: good.delayed(dice.uniform(0.5, 3.0)),
        lambda: good.in_pieces(1, 7, 100),
        lambda: stream([*words, hang()]) if streamed else good.hang_at(100),
        lambda: stream([*words, error_event()]) if streamed else good.hang_at(0),
        lambda: stream(["word "] * 5000, usage=None) if streamed else good,
        lambda: stream(words, usage=None) if streamed else reply("a b", usage=None),
    )
    return dice.choice(faults)()


# --- the clients ----------------------------------------------------------------------------------


class _Crowd:
    def __init__(self, customer: Customer, soaked: Soaked) -> None:
        self._customer = customer
        self._soaked = soaked
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._counting = threading.Lock()

    def work(self, dice: Random) -> None:
        self._over.clear()
        self._threads = [
            threading.Thread(target=self._keep_asking, args=(Random(dice.random()),))
            for _ in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def rest(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _keep_asking(self, dice: Random) -> None:
        while not self._over.is_set():
            try:
                status, end = _ask(self._customer, dice)
            except (ConnectionError, TimeoutError, BodyCutError, ValueError) as wrong:
                with self._counting:
                    self._soaked.complaints.append(f"a client saw {wrong!r}")
                return
            with self._counting:
                self._soaked.ends[end] += 1
                if status:
                    self._soaked.statuses[status] += 1


def _ask(customer: Customer, dice: Random) -> tuple[int, str]:
    """The status, 0 where the client did not wait for it, and how it ended."""
    fields: dict[str, Any] = {
        "messages": [message("Tell me something.")],
        "max_tokens": dice.choice((5, 100, 4096)),
        "stream": dice.random() < 0.6,
    }
    headers: list[tuple[str, str]] = []
    chance = dice.random()
    if chance < 0.04:
        fields["temperature"] = 9
    elif chance < 0.06:
        fields["model"] = "acme/nothing"
    elif chance < 0.12:
        headers.append(("Idempotency-Key", f"key-{dice.randint(0, 1000)}"))
    elif chance < 0.2:
        headers.append(("X-Tollway-Timeout-Ms", str(dice.choice((1, 30, 200, 5000)))))
    leaves = dice.random() < 0.25
    with customer.begin_chat(*headers, **fields) as client:
        if leaves:
            return _leave(client, dice)
        answered = client.read_reply()
    if answered.status != 200:
        answered.json()  # its error is whole
        own = answered.status == 504 and any(name == "X-Tollway-Timeout-Ms" for name, _ in headers)
        if answered.status < 500 or own:
            return answered.status, "refused"
        return answered.status, "failed"
    if not fields["stream"]:
        return 200, "whole"
    return 200, "stream" if answered.events[-1].data == "[DONE]" else "stream that broke off"


def _leave(client: RawClient, dice: Random) -> tuple[int, str]:
    status = 0
    if dice.random() < 0.7:
        head = client.read_head()
        status = head.status
        if head.status == 200 and head.header("content-type") == "text/event-stream":
            client.read_events(dice.randint(1, 5))
    (client.reset if dice.random() < 0.5 else client.close)()
    return status, "left"


# --- the process ----------------------------------------------------------------------------------


def _rest(server: TollwayServer, upstreams: list[FakeUpstream], began: float) -> Rest:
    """Once nothing runs any more, or as it is when the patience is over."""
    deadline = time.monotonic() + REST_SECONDS_MAX
    calm = 0
    seen = _look(server, upstreams, began)
    while calm < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
        before, seen = seen, _look(server, upstreams, began)
        busy = seen.holds or seen.in_flight or seen.places
        unchanged = (before.tasks, before.sockets) == (seen.tasks, seen.sockets)
        calm = calm + 1 if unchanged and not busy else 0
    return seen


def _look(server: TollwayServer, upstreams: list[FakeUpstream], began: float) -> Rest:
    with RawClient("127.0.0.1", server.port) as client:
        client.request("GET", "/metrics")
        page = client.read_reply().body.decode()
    process = psutil.Process(server.pid)
    sockets = len(process.net_connections("inet"))
    return Rest(
        seconds=time.monotonic() - began,
        rss_mib=round(process.memory_info().rss / 2**20, 1),
        tasks=_sum(page, "tollway_tasks"),
        sockets=sockets - sum(upstream.connections_open for upstream in upstreams),
        files=process.num_fds() - sockets,
        holds=_sum(page, "tollway_holds_open"),
        in_flight=_sum(page, "tollway_requests_in_flight"),
        places=_sum(page, "tollway_upstream_in_flight") + _sum(page, "tollway_upstream_waiting"),
    )


def _sum(page: str, metric: str) -> int:
    found = re.findall(rf"^{metric}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE)
    assert found, metric
    return round(sum(float(value) for value in found))


def _shown(rest: Rest) -> str:
    values = msgspec.structs.asdict(rest)
    del values["seconds"]
    return "  ".join(f"{name} {value}" for name, value in values.items())


# --- the command ----------------------------------------------------------------------------------


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(str(word) for word in words) + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tollway-soak-") as directory:
        soaked = soak(arguments.minutes * 60, Path(directory), seed=arguments.seed, tell=_say)
    _say(f"{'seconds':24} {soaked.seconds:.0f}")
    _say(f"{'requests':24} {soaked.requests} {dict(soaked.ends)}")
    _say(f"{'statuses':24} {dict(sorted(soaked.statuses.items()))}")
    _say(f"{'reloads':24} {soaked.reloads}")
    _say(f"{'MiB a minute, when warm':24} {soaked.growth_mib_per_minute:.2f}")
    for complaint in soaked.complaints[:20]:
        _say("WRONG", complaint)
    return 1 if soaked.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
