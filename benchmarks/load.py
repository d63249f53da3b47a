"""The tests: what a gateway under test is sent, and the figures that come of it. README.md says
what each is for."""

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gateways import Gateway
from benchmarks.processes import LOAD_CORE, NATIVE, built, on_load_core, used

CONNECTIONS = 64
BURST_STREAMS = 32
PACED_STREAMS = 64
PACE_MS = 20
CHUNKS = 64
IDLE_STREAMS = 1000
IDLE_SECONDS = 5
IDLE_PACE_MS = 60_000
WARM_SECONDS = 2

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
        "errors": held["errors"] + IDLE_STREAMS - opened,
    }


def plain(gateway: Gateway, seconds: int, tokens: Path | None = None) -> Figures:
    """Whole replies, keep-alive, as fast as they go; with a file of `tokens`, another one each
    time."""
    _wrk(gateway, WARM_SECONDS, tokens)
    before = used(gateway.pid)
    printed = _wrk(gateway, seconds, tokens)
    after = used(gateway.pid)
    count = int(_found(r"(\d+) requests in", printed))
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", printed)
    broken = re.findall(r"(?:connect|read|write|timeout) (\d+)", printed)
    return {
        "request_us": (after.cpu_seconds - before.cpu_seconds) * 1e6 / max(count, 1),
        "requests_per_second": float(_found(r"Requests/sec:\s+([\d.]+)", printed)),
        "p50_ms": _ms(_found(r"(?m)^\s+50%\s+(\S+)", printed)),
        "p99_ms": _ms(_found(r"(?m)^\s+99%\s+(\S+)", printed)),
        "errors": (int(failed[1]) if failed else 0) + sum(int(number) for number in broken),
    }


def burst(gateway: Gateway, seconds: int) -> Figures:
    """Streams that the upstream writes as fast as it can: chunks come many at a time."""
    _stream(gateway, BURST_STREAMS, WARM_SECONDS, pace_ms=0)
    cpu_us, streamed = _measured_stream(gateway, BURST_STREAMS, seconds, pace_ms=0)
    return {"burst_chunk_us": cpu_us / max(streamed["chunks"], 1), "errors": streamed["errors"]}


def paced(gateway: Gateway, seconds: int) -> Figures:
    """Streams as a model writes them: each chunk is a wake-up of its own."""
    cpu_us, streamed = _measured_stream(gateway, PACED_STREAMS, seconds, pace_ms=PACE_MS)
    return {
        "paced_chunk_us": cpu_us / max(streamed["chunks"], 1),
        "first_chunk_p50_ms": streamed["ttfc_p50"],
        "first_chunk_p99_ms": streamed["ttfc_p99"],
        "errors": streamed["errors"],
    }


TESTS: dict[str, Callable[[Gateway, int], Figures]] = {
    "idle": idle,
    "plain": plain,
    "burst": burst,
    "paced": paced,
}
UNIT_OF = {"plain": "request_us", "burst": "burst_chunk_us", "paced": "paced_chunk_us"}


def _measured_stream(
    gateway: Gateway, streams: int, seconds: int, pace_ms: int
) -> tuple[float, Figures]:
    before = used(gateway.pid)
    streamed = _stream(gateway, streams, seconds, pace_ms)
    after = used(gateway.pid)
    return (after.cpu_seconds - before.cpu_seconds) * 1e6, streamed


def _stream(gateway: Gateway, streams: int, seconds: int, pace_ms: int) -> Figures:
    return json.loads(on_load_core(_stream_command(gateway, streams, seconds, pace_ms)))


def _stream_command(gateway: Gateway, streams: int, seconds: int, pace_ms: int) -> list[str]:
    program = [built("stream_load"), str(gateway.port), gateway.path, gateway.token, gateway.model]
    return [*program, str(streams), str(seconds), str(CHUNKS), str(pace_ms)]


def _wrk(gateway: Gateway, seconds: int, tokens: Path | None = None) -> str:
    url = f"http://127.0.0.1:{gateway.port}{gateway.path}"
    options = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "--latency"]
    script = NATIVE / ("post.lua" if tokens is None else "post_many.lua")
    command = ["wrk", *options, "-s", str(script), url]
    more = "|".join(f"{name}: {value}" for name, value in gateway.headers)
    env = {"TOKEN": gateway.token, "MODEL": gateway.model, "EXTRA_HEADERS": more}
    if tokens is not None:
        env["TOKENS"] = str(tokens)
    return on_load_core(command, env)


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"wrk did not print {pattern}:\n{text}")
    return found[1]


def _ms(text: str) -> float:
    number, unit = _found(r"^([\d.]+)", text), _found(r"([a-z]+)$", text)
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[unit]
