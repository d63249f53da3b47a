"""CPU and memory of a request through Tollway, as a ratio to nginx passing the same bytes.

    python -m benchmarks.ratio [--rounds 3] [--secs 8] [--only plain,paced] [--gateways
    nginx,tollway]

Both gateways run at the same time, pinned to one core, and take turns within every round; the load
and the model's server run on the other. See README.md for what is measured and why.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateways import MODEL, PATH, Gateway, nginx, tollway
from benchmarks.processes import (
    LOAD_CORE,
    NATIVE,
    built,
    free_port,
    on_load_core,
    raise_file_limit,
    running,
    used,
)

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


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table. `best` is min where less is better; a limit is a ratio to nginx or a
    number, as it says."""

    key: str
    title: str
    best: Callable[[list[float]], float] = min
    digits: int = 1
    must: str = ""
    aim: str = ""


MEASURES = (
    Measure("request_us", "CPU µs a request", must="<= 6x", aim="<= 4x"),
    Measure("paced_chunk_us", "CPU µs a paced chunk", must="<= 3x", aim="<= 2x"),
    Measure("burst_chunk_us", "CPU µs a burst chunk", digits=2),
    Measure("idle_stream_kb", "KB an idle stream", must="<= 24 KB", aim="<= 12 KB"),
    Measure("resident_mb", "RSS MB before load", must="<= 80 MB", aim="<= 50 MB"),
    Measure("requests_per_second", "requests/s", best=max, digits=0),
    Measure("p50_ms", "p50 ms", digits=2),
    Measure("p99_ms", "p99 ms", digits=2),
    Measure("first_chunk_p50_ms", "time to first chunk, p50 ms", digits=2),
    Measure("first_chunk_p99_ms", "time to first chunk, p99 ms", digits=2),
    Measure("errors", "errors", best=max, digits=0),
)


# --- the tests ---


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


def plain(gateway: Gateway, seconds: int) -> Figures:
    """Whole replies, keep-alive, as fast as they go."""
    _wrk(gateway, WARM_SECONDS)
    before = used(gateway.pid)
    printed = _wrk(gateway, seconds)
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
    program = [built("stream_load"), str(gateway.port), PATH, gateway.token, MODEL]
    return [*program, str(streams), str(seconds), str(CHUNKS), str(pace_ms)]


def _wrk(gateway: Gateway, seconds: int) -> str:
    url = f"http://127.0.0.1:{gateway.port}{PATH}"
    options = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "--latency"]
    command = ["wrk", *options, "-s", str(NATIVE / "post.lua"), url]
    return on_load_core(command, {"TOKEN": gateway.token, "MODEL": MODEL})


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"wrk did not print {pattern}:\n{text}")
    return found[1]


def _ms(text: str) -> float:
    number, unit = _found(r"^([\d.]+)", text), _found(r"([a-z]+)$", text)
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[unit]


# --- the run ---


def main() -> None:
    chosen = _options()
    raise_file_limit()
    program = shlex.split(chosen.tollway)
    rounds: list[dict[str, Figures]] = []
    for number in range(chosen.rounds):
        measured = _round(chosen, program, reverse=number % 2 == 1)
        print(f"round {number + 1}: {json.dumps(measured)}", flush=True)
        rounds.append(measured)
    written = _report(rounds, chosen)
    print(written)
    if chosen.out:
        Path(chosen.out).write_text(written)
    if any(figures["errors"] for measured in rounds for figures in measured.values()):
        raise SystemExit("There were errors: the figures above are not those of a working gateway.")


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.ratio",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    beside = Path(sys.executable).with_name("tollway")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--secs", type=int, default=8, help="of each test in each round")
    options.add_argument("--only", type=_names(TESTS), default=list(TESTS), help=",".join(TESTS))
    both = ("nginx", "tollway")
    options.add_argument("--gateways", type=_names(both), default=list(both), help=",".join(both))
    options.add_argument("--tollway", default=str(beside), help="the command to run (%(default)s)")
    options.add_argument("--out", help="also write the table to this file")
    return options.parse_args()


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        wanted = text.split(",")
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
        return wanted

    return names


def _round(chosen: argparse.Namespace, program: list[str], *, reverse: bool) -> dict[str, Figures]:
    """Every test on every gateway, in turns. Each round starts them afresh, in the other order."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollway-bench-")))
        upstream_port = free_port()
        upstream = [built("fake_upstream"), str(upstream_port)]
        stack.enter_context(
            running(upstream, core=LOAD_CORE, port=upstream_port, log=folder / "upstream.log")
        )
        gateways: list[Gateway] = []
        if "nginx" in chosen.gateways:
            gateways.append(stack.enter_context(nginx(folder, upstream_port)))
        if "tollway" in chosen.gateways:
            gateways.append(stack.enter_context(tollway(folder, upstream_port, program)))
        if reverse:
            gateways.reverse()
        measured: dict[str, Figures] = {gateway.name: {"errors": 0} for gateway in gateways}
        for test in chosen.only:
            for gateway in gateways:
                figures = TESTS[test](gateway, chosen.secs)
                figures["errors"] += measured[gateway.name]["errors"]
                measured[gateway.name] |= figures
        return measured


# --- the table ---


def _report(rounds: list[dict[str, Figures]], chosen: argparse.Namespace) -> str:
    names = sorted(rounds[0], key=lambda name: name != "nginx")
    titles = ["", *names, "ratio", "median ratio", "must", "aim"]
    day = time.strftime("%Y-%m-%d")
    lines = [
        f"{day}, {_machine()}; {chosen.rounds} rounds, {chosen.secs} s a test. A figure is the",
        "best of the rounds; `ratio` is between those, `median ratio` that of the rounds' own.",
        "",
        f"| {' | '.join(titles)} |",
        "|---|" + "--:|" * (len(titles) - 1),
    ]
    lines += [
        f"| {' | '.join(_row(measure, rounds, names))} |"
        for measure in MEASURES
        if measure.key in rounds[0][names[0]]
    ]
    return "\n".join(lines) + "\n"


def _row(measure: Measure, rounds: list[dict[str, Figures]], names: list[str]) -> list[str]:
    series = {name: [figures[name][measure.key] for figures in rounds] for name in names}
    best = {name: measure.best(values) for name, values in series.items()}
    row = [measure.title, *(f"{best[name]:.{measure.digits}f}" for name in names), "", ""]
    if len(names) == 2 and all(series[names[0]]):
        yardstick, other = names
        each = [b / a for a, b in zip(series[yardstick], series[other], strict=True)]
        row[-2:] = [f"{best[other] / best[yardstick]:.2f}x", f"{statistics.median(each):.2f}x"]
    return [*row, measure.must, measure.aim]


def _machine() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    processor = names[0] if names else platform.machine()
    return f"{os.cpu_count()} cores of {processor}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
