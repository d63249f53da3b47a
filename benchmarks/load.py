"""The tests: what a gateway under test is sent, and the figures that come of it. README.md says
what each is for."""

import json
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.agents import agent_request
from benchmarks.gateways import Gateway
from benchmarks.processes import LOAD_CORE, NATIVE, built, cpu_seconds, on_load_core, used
from tollway.api.admin.control import ask

CONNECTIONS = 64
ACCOUNTS = 256
BURST_STREAMS = 32
PACED_STREAMS = 64
PACE_MS = 20
CHUNKS = 64
IDLE_STREAMS = 1000
IDLE_SECONDS = 5
IDLE_PACE_MS = 60_000
WARM_SECONDS = 2
RATE = 3000
LOW_RATE = 50
CROWD_STREAMS = 1000
CROWD_CHUNKS = 250
LARGE_RATE = 20
LARGE_CONNECTIONS = 8
LARGE_MESSAGES = 200
LARGE_MESSAGE_BYTES = 5220

# What messages say, as it is written in JSON.
PROSE = "Explain in three sentences why the Tay Bridge fell. "
LINES = (
    "The first Tay Bridge was opened in 1878 and fell nineteen months later in a storm.\\n" * 4
    + 'A court of inquiry called it \\"badly designed, badly built and badly maintained\\".\\n'
)
CODE = '    if span.load > LIMIT:\\n        raise Fallen(\\"the bridge\\", span[0])\\n'
TYPESET = (
    "The first Tay Bridge — opened in 1878 — didn\u2019t stand for two years.\\n"
    "A court of inquiry called it “badly designed, badly built and badly maintained”.\\n"
)
CHINESE = "第一座泰桥在一场风暴中倒塌\uff0c当时一列火车正从桥上经过。请用三句话说明原因\uff01\\n"

SMALL_MESSAGE_BYTES = 728
AGENT_TURNS = 90

Figures = dict[str, float]


def idle(gateway: Gateway, seconds: int) -> Figures:
    """Streams that have sent one chunk and wait for the next."""
    del seconds  # what an open stream holds does not depend on how long one looks
    _stream(gateway, 8, 1, pace_ms=0)
    command = _stream_command(gateway, IDLE_STREAMS, IDLE_SECONDS + 1, IDLE_PACE_MS)
    before = used(gateway.pid)
    holding = subprocess.Popen(
        ["taskset", "-c", LOAD_CORE, *command, "hold"],
        stdout=subprocess.PIPE,
        env=_env(gateway),
    )
    time.sleep(IDLE_SECONDS)
    during = used(gateway.pid)
    held = json.loads(holding.communicate()[0])
    time.sleep(1)  # for the gateway to see them gone
    opened = held["chunks"]
    more = during.proportional_bytes - before.proportional_bytes
    return {
        "resident_mb": before.resident_bytes / 2**20,
        "idle_stream_kb": more / 1024 / max(opened, 1),
        "idle_opened": opened,
        "errors": held["errors"],
    }


def plain(
    gateway: Gateway, seconds: int, tokens: Path | None = None, core: str = LOAD_CORE
) -> Figures:
    """Whole replies, keep-alive, as fast as they go; with a file of `tokens`, another one each
    time."""
    script = "post.lua" if tokens is None else "post_many.lua"
    more = {} if tokens is None else {"TOKENS": str(tokens)}
    spent, printed = _closed_loop(gateway, seconds, script, more, core=core)
    count, errors = _answered(printed)
    return {
        "request_us": spent.gateway_us / max(count, 1),
        "requests_per_second": float(_found(r"Requests/sec:\s+([\d.]+)", printed)),
        "p50_ms": _ms(_found(r"(?m)^\s+50%\s+(\S+)", printed)),
        "p99_ms": _ms(_found(r"(?m)^\s+99%\s+(\S+)", printed)),
        "load_share": spent.load_share,
        "errors": errors,
    }


def accounts(gateway: Gateway, seconds: int) -> Figures:
    """As `plain`, with another account each time: each has places of its own in the ledger."""
    figures = plain(gateway, seconds, None if gateway.data is None else _tokens_in(gateway.data))
    return {f"accounts_{name}": figures[name] for name in ("request_us", "p50_ms", "p99_ms")} | {
        "errors": figures["errors"]
    }


def _tokens_in(data: Path) -> Path:
    """The file of one token of each account, which are made at the first call."""
    tokens = data.with_name(f"{data.name}-tokens.txt")
    if not tokens.exists():
        secrets: list[str] = []
        for number in range(ACCOUNTS):
            name = f"account-{number}"
            ask(data, "account create", {"name": name})
            issued = ask(data, "token issue", {"account": name})
            assert issued is not None, "the server runs"
            secrets.append(issued["personal_access_token"])
        tokens.write_text("".join(f"{secret}\n" for secret in secrets))
    return tokens


def rate(gateway: Gateway, seconds: int, requests_per_second: float = RATE) -> Figures:
    """The same number of requests a second for every gateway, whether or not it has answered those
    before."""
    _paced_requests(gateway, WARM_SECONDS, requests_per_second)
    with _spent(gateway) as spent:
        asked = _paced_requests(gateway, seconds, requests_per_second)
    return {
        "rate_request_us": spent.gateway_us / max(asked["requests"], 1),
        "rate_p50_ms": asked["p50"],
        "rate_p99_ms": asked["p99"],
        "rate_late": asked["late"] / max(asked["requests"], 1),
        "errors": asked["errors"],
    }


def burst(gateway: Gateway, seconds: int) -> Figures:
    """Streams that the upstream writes as fast as it can: chunks come many at a time."""
    _stream(gateway, BURST_STREAMS, WARM_SECONDS, pace_ms=0)
    with _spent(gateway) as spent:
        streamed = _stream(gateway, BURST_STREAMS, seconds, pace_ms=0)
    return {
        "burst_chunk_us": spent.gateway_us / max(streamed["chunks"], 1),
        "burst_chunks_per_second": streamed["chunks"] / streamed["secs"],
        "errors": streamed["errors"],
    }


def paced(gateway: Gateway, seconds: int) -> Figures:
    """Streams as a model writes them: each chunk is a wake-up of its own."""
    with _spent(gateway) as spent:
        streamed = _stream(gateway, PACED_STREAMS, seconds, pace_ms=PACE_MS)
    return {
        "paced_chunk_us": spent.gateway_us / max(streamed["chunks"], 1),
        "first_chunk_p50_ms": streamed["ttfc_p50"],
        "first_chunk_p99_ms": streamed["ttfc_p99"],
        "paced_load_share": spent.load_share,
        "errors": streamed["errors"],
    }


@dataclass(frozen=True, slots=True)
class Large:
    """A conversation of 1 MiB in 200 messages, each of them `text` over and over, as fast as they
    go. `name` is the test's."""

    name: str
    text: str

    @property
    def unit(self) -> str:
        return f"{self.name}_request_us"

    def __call__(self, gateway: Gateway, seconds: int) -> Figures:
        more = {
            "MESSAGES": str(LARGE_MESSAGES),
            "MESSAGE_BYTES": str(LARGE_MESSAGE_BYTES),
            "SENTENCE": self.text,
        }
        return _large_requests(gateway, seconds, self.name, "post_large.lua", more)


LARGE = (
    Large("large", PROSE),
    Large("large_lines", LINES),
    Large("large_code", CODE),
    Large("large_typeset", TYPESET),
    Large("large_chinese", CHINESE),
)


@dataclass(frozen=True, slots=True)
class Agent:
    """What a program that writes code sends after a while: 288 KB, with tools, their calls and
    their results. `name` is the test's."""

    name: str
    nulls: bool

    @property
    def unit(self) -> str:
        return f"{self.name}_request_us"

    def __call__(self, gateway: Gateway, seconds: int) -> Figures:
        with tempfile.NamedTemporaryFile() as body:
            body.write(agent_request(gateway.model, AGENT_TURNS, nulls=self.nulls))
            body.flush()
            more = {"BODY": body.name}
            return _large_requests(gateway, seconds, self.name, "post_body.lua", more)


def _large_requests(
    gateway: Gateway, seconds: int, name: str, script: str, more: dict[str, str]
) -> Figures:
    spent, printed = _closed_loop(gateway, seconds, script, more, connections=LARGE_CONNECTIONS)
    count, errors = _answered(printed)
    return {
        f"{name}_request_us": spent.gateway_us / max(count, 1),
        f"{name}_load_share": spent.load_share,
        "errors": errors,
    }


AGENTS = (Agent("agent", nulls=False), Agent("agent_nulls", nulls=True))


def large_rate(gateway: Gateway, seconds: int) -> Figures:
    """1 MiB of prose, twenty a second: each finds the gateway asleep and the caches cold."""
    with _spent(gateway) as spent:
        asked = _paced_requests(
            gateway,
            seconds,
            LARGE_RATE,
            LARGE_MESSAGES,
            LARGE_MESSAGE_BYTES,
            connections=LARGE_CONNECTIONS,
        )
    return {
        "large_rate_request_us": spent.gateway_us / max(asked["requests"], 1),
        "errors": asked["errors"],
    }


def low(gateway: Gateway, seconds: int) -> Figures:
    """What a request takes where nothing else runs: whole replies, then streams, fifty a second."""
    whole = _paced_requests(gateway, seconds, LOW_RATE)
    streamed = _paced_requests(gateway, seconds, LOW_RATE, stream=True)
    return {
        "low_p50_ms": whole["p50"],
        "low_p99_ms": whole["p99"],
        "low_first_p50_ms": streamed["first_p50"],
        "low_first_p99_ms": streamed["first_p99"],
        "errors": whole["errors"] + streamed["errors"],
    }


def crowd(gateway: Gateway, seconds: int) -> Figures:
    """A thousand streams of a chunk each 20 ms: 50,000 chunks a second."""
    lasts = CROWD_CHUNKS * PACE_MS // 1000  # until the last has begun
    command = _stream_command(gateway, CROWD_STREAMS, lasts + seconds, PACE_MS, chunks=CROWD_CHUNKS)
    with _spent(gateway) as spent:
        streamed = json.loads(on_load_core([*command, "spread"], _env(gateway)))
    return {
        "crowd_chunk_us": spent.gateway_us / max(streamed["chunks"], 1),
        "crowd_first_p50_ms": streamed["ttfc_p50"],
        "crowd_first_p99_ms": streamed["ttfc_p99"],
        "crowd_gap_p99_ms": streamed["gap_p99"],
        "crowd_gap_max_ms": streamed["gap_max"],
        "crowd_load_share": spent.load_share,
        "errors": streamed["errors"],
    }


TESTS: dict[str, Callable[[Gateway, int], Figures]] = {
    "idle": idle,
    "plain": plain,
    "accounts": accounts,
    "rate": rate,
    "burst": burst,
    "paced": paced,
    **{test.name: test for test in LARGE},
    **{test.name: test for test in AGENTS},
    "large_rate": large_rate,
    "low": low,
    "crowd": crowd,
}
USUAL_TESTS = [
    "idle",
    "plain",
    "rate",
    "burst",
    "paced",
    "large",
    "large_lines",
    "large_code",
    "agent",
]
UNIT_OF = {
    "plain": "request_us",
    "accounts": "accounts_request_us",
    "rate": "rate_request_us",
    "burst": "burst_chunk_us",
    "paced": "paced_chunk_us",
    **{test.name: test.unit for test in LARGE},
    **{test.name: test.unit for test in AGENTS},
    "large_rate": "large_rate_request_us",
    "crowd": "crowd_chunk_us",
}


# --- what a test spent ----------------------------------------------------------------------------


@dataclass(slots=True)
class Spent:
    """`load_share` is how much of their core the load and the model's server used: near 1 they, and
    not the gateway, would be what is measured."""

    gateway_us: float = 0.0
    load_share: float = 0.0


@contextmanager
def _spent(gateway: Gateway) -> Generator[Spent]:
    spent = Spent()
    own, model, load, began = _now(gateway)
    yield spent
    own_after, model_after, load_after, ended = _now(gateway)
    spent.gateway_us = (own_after - own) * 1e6
    spent.load_share = (model_after - model + load_after - load) / (ended - began)


def _now(gateway: Gateway) -> tuple[float, float, float, float]:
    """Seconds of CPU: the gateway's, the model's server's, the load's that have ended; and the
    time."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    load = children.ru_utime + children.ru_stime
    model = cpu_seconds(gateway.upstream.pid)
    return cpu_seconds(gateway.pid), model, load, time.monotonic()


# --- the load -------------------------------------------------------------------------------------


def _stream(gateway: Gateway, streams: int, seconds: int, pace_ms: int) -> Figures:
    command = _stream_command(gateway, streams, seconds, pace_ms)
    return json.loads(on_load_core(command, _env(gateway)))


def _stream_command(
    gateway: Gateway, streams: int, seconds: int, pace_ms: int, chunks: int = CHUNKS
) -> list[str]:
    program = [built("stream_load"), str(gateway.port), gateway.path, gateway.token, gateway.model]
    return [*program, str(streams), str(seconds), str(chunks), str(pace_ms)]


def _paced_requests(
    gateway: Gateway,
    seconds: int,
    requests_per_second: float,
    messages: int = 1,
    message_bytes: int = SMALL_MESSAGE_BYTES,
    *,
    stream: bool = False,
    connections: int = CONNECTIONS,
) -> Figures:
    program = [built("rate_load"), str(gateway.port), gateway.path, gateway.token, gateway.model]
    numbers = [connections, seconds, requests_per_second, messages, message_bytes, int(stream)]
    return json.loads(on_load_core([*program, *map(str, numbers)], _env(gateway)))


def _closed_loop(
    gateway: Gateway,
    seconds: int,
    script: str,
    more: Mapping[str, str],
    *,
    connections: int = CONNECTIONS,
    core: str = LOAD_CORE,
) -> tuple[Spent, str]:
    """What it took, after a warm-up, and what `wrk` printed."""
    _wrk(gateway, WARM_SECONDS, script, more, connections=connections, core=core)
    with _spent(gateway) as spent:
        printed = _wrk(gateway, seconds, script, more, connections=connections, core=core)
    return spent, printed


def _wrk(
    gateway: Gateway,
    seconds: int,
    script: str,
    more: Mapping[str, str],
    *,
    connections: int,
    core: str,
) -> str:
    """What it printed. `more` is for the script's environment."""
    url = f"http://127.0.0.1:{gateway.port}{gateway.path}"
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "--latency"]
    command = ["wrk", *options, "-s", str(NATIVE / script), url]
    return on_load_core(command, _env(gateway) | more, core)


def _answered(printed: str) -> tuple[int, int]:
    """How many requests, and how many of them, or of the connections, failed."""
    count = int(_found(r"(\d+) requests in", printed))
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", printed)
    broken = re.findall(r"(?:connect|read|write|timeout) (\d+)", printed)
    return count, (int(failed[1]) if failed else 0) + sum(int(number) for number in broken)


def _env(gateway: Gateway) -> dict[str, str]:
    more = "|".join(f"{name}: {value}" for name, value in gateway.headers)
    return {"TOKEN": gateway.token, "MODEL": gateway.model, "EXTRA_HEADERS": more}


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"wrk did not print {pattern}:\n{text}")
    return found[1]


def _ms(text: str) -> float:
    number, unit = _found(r"^([\d.]+)", text), _found(r"([a-z]+)$", text)
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[unit]
