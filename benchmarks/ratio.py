"""CPU and memory of a request through Tollway, as a ratio to nginx passing the same bytes.

    python -m benchmarks.ratio [--rounds 3] [--secs 8] [--only plain,paced]
        [--gateways nginx,tollway]

The gateways run at the same time, pinned to one core, and take turns within every round; the load
and the model's server run on the other. Beside the two there are `direct`, no gateway at all, and
`memory`, Tollway with its data in memory, where an fsync takes no time. See README.md for what is
measured and why.
"""

import argparse
import contextlib
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateways import (
    Gateway,
    Upstream,
    direct,
    nginx,
    tollway,
    tollway_in_memory,
    upstream,
)
from benchmarks.load import TESTS, USUAL_TESTS, Figures
from benchmarks.machine import machine
from benchmarks.marked import write_between_marks
from benchmarks.processes import raise_file_limit, take_priority


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


PAGE = Path("docs/performance.md")
GATEWAYS: dict[str, Callable[[Path, Upstream, list[str]], AbstractContextManager[Gateway]]] = {
    "direct": lambda folder, model, program: direct(model),
    "nginx": lambda folder, model, program: nginx(folder, model),
    "tollway": lambda folder, model, program: tollway(folder, model, program),
    "memory": lambda folder, model, program: tollway_in_memory(folder, model, program),
}

DEFAULT_TESTS = [*USUAL_TESTS, "accounts", "large_typeset", "large_chinese", "large_rate"]

MEASURES = (
    Measure("request_us", "CPU µs a request", must="<= 6x", aim="<= 4x"),
    Measure("accounts_request_us", "the same, of 256 accounts in turn"),
    Measure("paced_chunk_us", "CPU µs a paced chunk", must="<= 3x", aim="<= 2x"),
    Measure("burst_chunk_us", "CPU µs a burst chunk", digits=2),
    Measure("idle_stream_kb", "KB an idle stream", must="<= 24 KB", aim="<= 12 KB"),
    Measure("idle_opened", "of 1,000 idle streams, begun after 5 s", digits=0),
    Measure("resident_mb", "RSS MB before load", must="<= 80 MB", aim="<= 50 MB"),
    Measure("large_request_us", "CPU µs a request of 1 MiB", digits=0, must="<= 3x", aim="<= 3x"),
    Measure(
        "large_lines_request_us",
        "the same, of texts with lines and quotes",
        digits=0,
        must="<= 3x",
        aim="<= 3x",
    ),
    Measure("large_code_request_us", "the same, of code", digits=0),
    Measure("agent_request_us", "CPU µs a request of an agent, 288 KB", digits=0),
    Measure("large_typeset_request_us", "the same, of typeset English", digits=0),
    Measure("large_chinese_request_us", "the same, of Chinese", digits=0),
    Measure("rate_request_us", "CPU µs a request, 3,000 a second for both"),
    Measure("large_rate_request_us", "CPU µs a request of 1 MiB, 20 a second for both", digits=0),
    Measure("requests_per_second", "requests/s", best=max, digits=0),
    Measure("p50_ms", "p50 ms", digits=2),
    Measure("p99_ms", "p99 ms", digits=2),
    Measure("first_chunk_p50_ms", "time to first chunk, p50 ms", digits=2),
    Measure("first_chunk_p99_ms", "time to first chunk, p99 ms", digits=2),
    Measure("low_p50_ms", "50 a second: p50 ms", digits=2),
    Measure("low_p99_ms", "50 a second: p99 ms", digits=2),
    Measure("low_first_p50_ms", "50 a second: first chunk, p50 ms", digits=2),
    Measure("low_first_p99_ms", "50 a second: first chunk, p99 ms", digits=2),
    Measure("crowd_chunk_us", "1,000 streams: CPU µs a chunk"),
    Measure("crowd_first_p50_ms", "1,000 streams: first chunk, p50 ms", digits=2),
    Measure("crowd_first_p99_ms", "1,000 streams: first chunk, p99 ms", digits=2),
    Measure("crowd_gap_p99_ms", "1,000 streams: between two reads, p99 ms"),
    Measure("crowd_gap_max_ms", "1,000 streams: longest between two reads, ms"),
    Measure("crowd_load_share", "the same, 1,000 streams", best=max, digits=2),
    Measure("load_share", "share of the load's core that was used", best=max, digits=2),
    Measure("errors", "errors", best=max, digits=0),
)


# --- the run ---


def main() -> None:
    chosen = _options()
    raise_file_limit()
    take_priority(chosen.nice)
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
    if chosen.page:
        write_between_marks(PAGE, chosen.page, written)
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
    options.add_argument("--only", type=_names(TESTS), default=DEFAULT_TESTS, help=",".join(TESTS))
    options.add_argument(
        "--gateways", type=_names(GATEWAYS), default=["nginx", "tollway"], help=",".join(GATEWAYS)
    )
    options.add_argument("--nice", type=int, default=0, help="-20: the neighbours wait (root)")
    options.add_argument("--tollway", default=str(beside), help="the command to run (%(default)s)")
    options.add_argument("--page", help=f"write the table between these marks of {PAGE}")
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
        model = stack.enter_context(upstream(folder))
        gateways = [
            stack.enter_context(GATEWAYS[name](folder, model, program)) for name in chosen.gateways
        ]
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
    names = list(rounds[0])  # the first round has them in the order that was asked for
    titles = ["", *names, "ratio", "median ratio", "must", "aim"]
    day = time.strftime("%Y-%m-%d")
    lines = [
        f"{day}, {machine()}; {chosen.rounds} rounds, {chosen.secs} s a test. A figure is the",
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


if __name__ == "__main__":
    main()
