"""The table and the plot of docs/performance.md, from the rounds that were measured. The prose
around them stays."""

import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import tools
from benchmarks.load import IDLE_STREAMS, Figures
from benchmarks.machine import machine
from benchmarks.marked import write_between_marks
from benchmarks.peers.gateways import ENTRIES

IMAGES = Path("docs/images")
PAGE = Path("docs/performance.md")


@dataclass(frozen=True, slots=True)
class Column:
    key: str
    title: str
    digits: int = 1
    ratio: bool = False


COLUMNS = (
    Column("request_us", "us a request", ratio=True),
    Column("rate_request_us", "us a request at 3,000/s", ratio=True),
    Column("per_core", "requests/s a core", 0),
    Column("p50_ms", "p50 ms"),
    Column("p99_ms", "p99 ms"),
    Column("paced_chunk_us", "us a paced chunk", ratio=True),
    Column("burst_chunk_us", "us a burst chunk", 2),
    Column("first_chunk_p50_ms", "first chunk p50 ms"),
    Column("first_chunk_p99_ms", "p99 ms"),
    Column("large_request_us", "us a request of 1 MiB", 0, ratio=True),
    Column("large_lines_request_us", "of lines", 0, ratio=True),
    Column("large_code_request_us", "of code", 0, ratio=True),
    Column("agent_request_us", "of an agent, 288 KB", 0, ratio=True),
    Column("resident_mb", "RSS MB", 0),
    Column("idle_stream_kb", "KB an idle stream"),
)


def publish(rounds: Sequence[dict[str, Figures]]) -> None:
    write_between_marks(PAGE, "peers", report(rounds))
    _plot(_medians_of_all(rounds))


def report(rounds: Sequence[dict[str, Figures]]) -> str:
    medians = _medians_of_all(rounds)
    ratios = {name: _ratios(rounds, name) for name in medians}
    day = time.strftime("%Y-%m-%d")
    head = f"{day}, {machine()}; medians of {len(rounds)} rounds.\n\n"
    return head + _table(medians, ratios) + "\n" + _notes(rounds, medians)


def _medians_of_all(rounds: Sequence[dict[str, Figures]]) -> dict[str, Figures]:
    return {name: _medians(rounds, name) for name in ENTRIES if name in rounds[-1]}


def _medians(rounds: Sequence[dict[str, Figures]], name: str) -> Figures:
    of = [measured[name] for measured in rounds if name in measured]
    keys = {key for figures in of for key, value in figures.items() if key != "missing"}
    medians = {
        key: statistics.median(figures[key] for figures in of if key in figures) for key in keys
    }
    if "request_us" in medians:
        medians["per_core"] = 1e6 / medians["request_us"]
    return medians


def _ratios(rounds: Sequence[dict[str, Figures]], name: str) -> Figures:
    """To nginx in the same round; the median of the rounds'."""
    ratios: Figures = {}
    for column in COLUMNS:
        each = [
            measured[name][column.key] / measured["nginx"][column.key]
            for measured in rounds
            if column.key in measured.get(name, {}) and column.key in measured.get("nginx", {})
        ]
        if column.ratio and each:
            ratios[column.key] = statistics.median(each)
    return ratios


def _table(medians: dict[str, Figures], ratios: dict[str, Figures]) -> str:
    lines = [
        f"| | {' | '.join(column.title for column in COLUMNS)} |",
        "|---|" + "--:|" * len(COLUMNS),
    ]
    for name, figures in medians.items():
        cells = [_cell(column, figures, ratios[name]) for column in COLUMNS]
        lines.append(f"| {ENTRIES[name].title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(column: Column, figures: Figures, ratios: Figures) -> str:
    if column.key not in figures:
        return ""
    number = f"{figures[column.key]:,.{column.digits}f}"
    ratio = ratios.get(column.key)
    return number if ratio is None else f"{number} ({ratio:.1f}x)"


def _notes(rounds: Sequence[dict[str, Figures]], medians: dict[str, Figures]) -> str:
    lines = ["What each does for a request beyond passing it on, as measured here:", ""]
    for name in medians:
        told = [f"- {ENTRIES[name].title}: {ENTRIES[name].does}."]
        latest = rounds[-1].get(name, {})
        if "missing" in latest:
            told.append(f"Not measured here: {latest['missing']}.")
        failed = sorted(key.removesuffix("_errors") for key in latest if key.endswith("_errors"))
        if failed:
            told.append(f"It answered with errors in {', '.join(failed)}, so these have no figure.")
        if latest.get("idle_opened", IDLE_STREAMS) < IDLE_STREAMS:
            told.append(f"Of 1,000 idle streams {latest['idle_opened']:.0f} had begun after 5 s.")
        lines.append(" ".join(told))
    loads = [figures["load_share"] for figures in medians.values() if "load_share" in figures]
    if loads and "direct" in medians:
        busiest = max(medians[name].get("load_share", 0) for name in medians if name != "direct")
        lines += [
            "",
            "The load and the model's server are not what is measured: without a gateway they do "
            f"{medians['direct']['requests_per_second']:,.0f} requests/s, and behind one they used "
            f"at most {busiest:.0%} of their core.",
        ]
    return "\n".join(lines) + "\n"


def _plot(medians: dict[str, Figures]) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    shown = {ENTRIES[name].title: f for name, f in medians.items() if name != "direct" and f}
    command = [str(tools() / "python"), str(Path(__file__).with_name("plot.py")), str(IMAGES)]
    subprocess.run(command, input=json.dumps(shown), text=True, check=True)
