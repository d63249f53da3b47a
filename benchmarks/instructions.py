"""Machine instructions a request, by thread and library: the same however busy the machine is.

    python -m benchmarks.instructions [--requests 960] [--top 30]

The server runs under callgrind (Debian: valgrind), some fifty times slower, and is counted while 32
connections have their requests answered; its start and its first requests are not. Callgrind counts
each step of a repeated string instruction, so zeroing or copying of pages looks dearer than it is.
What the kernel does, and what waits for memory, is not in it.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.support.counting import Client

from benchmarks.gateways import MODEL, Gateway, tollway, upstream

CONNECTIONS = 32
WARM_REQUESTS_EACH = 3
START_SECONDS_MAX = 300
SETTLE_SECONDS = 5.0
"""For charges to be filed and lines to be written."""

_LINE = re.compile(r"^\s*([0-9,]+) \([^)]*\)  (.*)$")
_LIBRARY = re.compile(r"\[(?:.*/)?([^/\]]+)\]$")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=960)
    parser.add_argument("--top", type=int, default=30)
    parser.add_argument("--tollway", default=f"{sys.executable} -m tollway")
    chosen = parser.parse_args()
    each = max(1, chosen.requests // CONNECTIONS)
    with tempfile.TemporaryDirectory(prefix="tollway-instructions-") as name:
        folder = Path(name)
        _count(folder, shlex.split(chosen.tollway), each)
        requests = each * CONNECTIONS
        for number, path in enumerate(sorted(folder.glob("counted.*-*")), 1):
            functions = _functions(path)
            total = functions.total() / requests
            if total < 1:
                continue
            thread = {1: "event loop", 2: "writer"}.get(number, "other")
            print(f"\n{thread}: {total:,.0f} instructions a request")
            libraries: Counter[str] = Counter()
            for function, count in functions.items():
                libraries[_library(function)] += count
            _print(libraries, requests, 12)
            _print(functions, requests, chosen.top)


def _count(folder: Path, program: list[str], each: int) -> None:
    callgrind = ["valgrind", "--tool=callgrind", "--trace-children=yes", "--instr-atstart=no"]
    callgrind += ["--separate-threads=yes", f"--callgrind-out-file={folder}/counted.%p"]
    with (
        upstream(folder) as model,
        tollway(folder, model, program, under=callgrind, start_seconds=START_SECONDS_MAX) as server,
    ):
        _ask(server, WARM_REQUESTS_EACH)
        time.sleep(SETTLE_SECONDS)
        _switch(server, "on")
        _ask(server, each)
        time.sleep(SETTLE_SECONDS)
        _switch(server, "off")


def _switch(server: Gateway, to: str) -> None:
    subprocess.run(
        ["callgrind_control", "-i", to, str(server.pid)], check=True, capture_output=True
    )


def _ask(server: Gateway, each: int) -> None:
    def ask() -> None:
        client = Client(server.port, server.token, MODEL)
        for _ in range(each):
            client.ask()

    asking = [threading.Thread(target=ask) for _ in range(CONNECTIONS)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()


def _functions(path: Path) -> Counter[str]:
    told = subprocess.run(
        ["callgrind_annotate", "--threshold=100", "--auto=no", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    counted: Counter[str] = Counter()
    for line in told.stdout.splitlines():
        found = _LINE.match(line)
        if found is not None and not found[2].startswith("PROGRAM"):
            counted[found[2]] += int(found[1].replace(",", ""))
    return counted


def _library(function: str) -> str:
    found = _LIBRARY.search(function)
    return "(none)" if found is None else found[1]


def _print(counted: Counter[str], requests: int, most: int) -> None:
    print("\n| | instructions a request |\n|---|--:|")
    for name, count in counted.most_common(most):
        place, _, library = name.partition(" [")
        shown = place.rpartition("/")[2] + (f" of {_library(name)}" if library else "")
        print(f"| {shown} | {count / requests:,.0f} |")


if __name__ == "__main__":
    main()
