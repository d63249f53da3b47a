"""What a request or a chunk costs in several builds of Tollway, beside nginx, in turns in one run.

    git worktree add ../before COMMIT
    python -m benchmarks.builds before=../before/src now=src [--test plain] [--rounds 9] [--secs 2]
    python -m benchmarks.builds this=src debian=src,../debian/bin/python

Times on a shared machine differ more from one minute to the next than one build from another. So
all run at once on one core, each has its turn in every round, in one direction and then in the
other, and a ratio is taken within each round. All run with this environment's libraries, unless a
build names the Python of another.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.gateways import Gateway, nginx, tollway, upstream
from benchmarks.load import TESTS, UNIT_OF
from benchmarks.processes import raise_file_limit, take_priority


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("builds", nargs="+", metavar="NAME=SRC[,PYTHON]")
    parser.add_argument("--test", choices=list(UNIT_OF), default="plain")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--secs", type=int, default=2, help="of each turn")
    parser.add_argument("--nice", type=int, default=0, help="-20: the neighbours wait (root)")
    chosen = parser.parse_args()
    raise_file_limit()
    take_priority(chosen.nice)
    test, unit = TESTS[chosen.test], UNIT_OF[chosen.test]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollway-builds-")))
        model = stack.enter_context(upstream(folder))
        gateways: dict[str, Gateway] = {"nginx": stack.enter_context(nginx(folder, model))}
        for build in chosen.builds:
            name, _, place = build.partition("=")
            source, _, python = place.partition(",")
            (folder / name).mkdir()
            os.environ["PYTHONPATH"] = str(Path(source).resolve())
            program = [python or sys.executable, "-m", "tollway"]
            gateways[name] = stack.enter_context(tollway(folder / name, model, program, name=name))
        for gateway in gateways.values():
            test(gateway, 1)
        spent: dict[str, list[float]] = {name: [] for name in gateways}
        for number in range(chosen.rounds):
            turns = list(gateways.items())
            for name, gateway in turns[::-1] if number % 2 else turns:
                spent[name].append(test(gateway, chosen.secs)[unit])
    print(f"{unit}, {chosen.rounds} rounds of {chosen.secs} s\n")
    print("| | lowest | median | median of the rounds' ratios to nginx |\n|---|--:|--:|--:|")
    for name, us in spent.items():
        ratio = statistics.median(a / b for a, b in zip(us, spent["nginx"], strict=True))
        print(f"| {name} | {min(us):.1f} | {statistics.median(us):.1f} | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
