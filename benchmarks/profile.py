"""Where the CPU of a request goes, while a test of the benchmark runs.

    python -m benchmarks.profile [--test plain|paced|burst] [--secs 8] [--top 40]

Two samplers look at one server, one after the other: `perf` (Debian: linux-perf) sees all of it by
library and symbol, C and kernel too; `py-spy` (which it installs beside) sees which Python
function was running. A share of the samples is a share of the CPU, and is told in microseconds of
what the test used for each request or chunk.
"""

import argparse
import contextlib
import re
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Generator
from pathlib import Path

from benchmarks.environments import tools
from benchmarks.gateways import Gateway, tollway, upstream
from benchmarks.load import TESTS, UNIT_OF
from benchmarks.processes import LOAD_CORE, raise_file_limit

SAMPLES_A_SECOND = 2000
PYTHON_SAMPLES_A_SECOND = 500

# What the samples of a library are called in the table: the rest is told by the library's own name.
LIBRARIES = {
    "[kernel.kallsyms]": "kernel",
    "libpython": "interpreter",
    "libsqlite3": "SQLite",
    "loop.cpython": "uvloop",
    "parser.cpython": "httptools",
    "_core.cpython": "msgspec",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--test", choices=list(UNIT_OF), default="plain")
    parser.add_argument("--secs", type=int, default=8)
    parser.add_argument("--top", type=int, default=40)
    parser.add_argument("--tollway", default=f"{sys.executable} -m tollway")
    chosen = parser.parse_args()
    raise_file_limit()
    with _server(shlex.split(chosen.tollway)) as (gateway, folder):
        test, unit = TESTS[chosen.test], UNIT_OF[chosen.test]
        test(gateway, 2)
        with _perf(gateway.pid, folder / "perf.data"):
            cpu_us = test(gateway, chosen.secs)[unit]
        native = _native_samples(folder / "perf.data")
        with _py_spy(gateway.pid, chosen.secs, folder / "python.txt"):
            with_py_spy_us = test(gateway, chosen.secs)[unit]
        functions = _python_samples(folder / "python.txt")
    print(f"{unit}: {cpu_us:.1f} with perf, {with_py_spy_us:.1f} with py-spy\n")
    print(_table("library", Counter(_library(dso) for _, dso, _ in native.elements()), cpu_us))
    threads = Counter("loop" if tid == gateway.pid else "others" for tid, _, _ in native.elements())
    print(_table("thread", threads, cpu_us))
    symbols = Counter(f"{_library(dso)}: {symbol}" for _, dso, symbol in native.elements())
    print(_table("symbol", symbols, cpu_us, chosen.top))
    files = Counter(function.rpartition(":")[0] for function in functions.elements())
    print(_table("Python file", files, with_py_spy_us, chosen.top))
    print(_table("Python function", functions, with_py_spy_us, chosen.top))


@contextlib.contextmanager
def _server(program: list[str]) -> Generator[tuple[Gateway, Path]]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollway-profile-")))
        model = stack.enter_context(upstream(folder))
        yield stack.enter_context(tollway(folder, model, program)), folder


@contextlib.contextmanager
def _perf(pid: int, data: Path) -> Generator[None]:
    """By the processor's clock, for virtual machines seldom have the counters."""
    options = ["-e", "cpu-clock", "-F", str(SAMPLES_A_SECOND), "-p", str(pid), "-o", str(data)]
    recording = subprocess.Popen(
        ["taskset", "-c", LOAD_CORE, "perf", "record", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        recording.terminate()
        recording.wait()


def _native_samples(data: Path) -> Counter[tuple[int, str, str]]:
    """Thread, library and symbol of each sample."""
    command = ["perf", "script", "-i", str(data), "-F", "tid,ip,sym,dso"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s*(\d+)\s+[0-9a-f]+ (.+?) \((.+)\)$", printed, re.MULTILINE)
    return Counter((int(tid), dso, symbol) for tid, symbol, dso in found)


@contextlib.contextmanager
def _py_spy(pid: int, seconds: int, out: Path) -> Generator[None]:
    program = tools() / "py-spy"
    # Only who has the interpreter's lock: a thread that waits for its fsync is no cost.
    options = ["-f", "raw", "--gil", "--nonblocking", "-r", str(PYTHON_SAMPLES_A_SECOND)]
    recording = subprocess.Popen(
        [
            "taskset",
            "-c",
            LOAD_CORE,
            program,
            "record",
            *options,
            "-d",
            str(seconds),
            "-p",
            str(pid),
            "-o",
            str(out),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        recording.wait()


def _python_samples(out: Path) -> Counter[str]:
    """File and function on top of the stack, for what ran in Python or in C called from there."""
    samples = Counter[str]()
    for line in out.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        top = re.fullmatch(r"(.+) \((.+?)(?::\d+)?\)", stack.rpartition(";")[2])
        if top is not None:
            samples[f"{top[2]}:{top[1]}"] += int(count)
    return samples


def _library(dso: str) -> str:
    name = Path(dso).name
    return next((title for part, title in LIBRARIES.items() if part in name), name)


def _table(title: str, samples: Counter[str], cpu_us: float, top: int = 15) -> str:
    total = samples.total() or 1
    lines = [f"| {title} | share | us |", "|---|--:|--:|"]
    lines += [
        f"| {name} | {count / total:.1%} | {cpu_us * count / total:.2f} |"
        for name, count in samples.most_common(top)
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
