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
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateways import Gateway, nginx, tollway
from benchmarks.load import TESTS, Figures
from benchmarks.processes import LOAD_CORE, built, free_port, raise_file_limit, running


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
