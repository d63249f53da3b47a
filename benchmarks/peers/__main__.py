"""Tollway, nginx and the peers that install from the registries, side by side in one run.

    python -m benchmarks.peers [--rounds 3] [--secs 6] [--only plain,paced]
        [--gateways nginx,tollway,vllm-router] [--results FILE] [--nice -20]

Installs each peer in an environment of its own as its lock file says, measures all of them in
turns, every second round in the opposite order, and prints the table. Where `--only` and
`--gateways` left nothing out (but `newer`), it is written into docs/performance.md too, with its
plot. `--results` keeps the rounds in a file and adds to those that are there, so that a long run
can be made in parts; with `--rounds 0` it only writes from them.
"""

import argparse
import contextlib
import json
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.environments import NotHere
from benchmarks.gateways import upstream
from benchmarks.load import RATE, TESTS, USUAL_TESTS, Figures
from benchmarks.peers.gateways import ENTRIES
from benchmarks.peers.report import publish, report
from benchmarks.processes import raise_file_limit, take_priority

SPARE = 1.2
"""A gateway that cannot do a fifth more than the fixed rate is not sent it: it would only queue."""


def main() -> None:
    chosen = _options()
    raise_file_limit()
    take_priority(chosen.nice)
    rounds = _kept(chosen.results)
    for _ in range(chosen.rounds):
        measured = _round(chosen, reverse=len(rounds) % 2 == 1)
        rounds.append(measured)
        print(f"round {len(rounds)}: {json.dumps(measured)}", flush=True)
        if chosen.results is not None:
            with chosen.results.open("a") as file:
                file.write(json.dumps(measured) + "\n")
    print(report(rounds))
    if set(USUAL_TESTS) <= set(chosen.only) and set(ENTRIES) - {"newer"} <= set(chosen.gateways):
        publish(rounds)


def _kept(results: Path | None) -> list[dict[str, Figures]]:
    if results is None or not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines()]


def _round(chosen: argparse.Namespace, *, reverse: bool) -> dict[str, Figures]:
    """Every test on every gateway, in turns; a line of the table that cannot be measured has its
    reason as `missing`, and a test that it does not pass has no figures."""
    program = shlex.split(chosen.tollway)
    measured: dict[str, Figures] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollway-peers-")))
        model = stack.enter_context(upstream(folder))
        gateways = {}
        for name in chosen.gateways:
            own = folder / name
            own.mkdir()
            try:
                gateways[name] = stack.enter_context(ENTRIES[name].start(own, model, program))
                measured[name] = {}
            except NotHere as error:
                measured[name] = {"missing": str(error)}
        turn = list(gateways.items())
        if reverse:
            turn.reverse()
        for test in chosen.only:
            for name, gateway in turn:
                if test == "rate" and _is_too_slow(measured[name]):
                    continue
                # What others have written must not be what this one's charges wait for: the first
                # fsync behind them took five seconds here.
                os.sync()
                began = time.monotonic()
                figures = TESTS[test](gateway, chosen.secs)
                took = time.monotonic() - began
                errors = figures.pop("errors")
                print(f"{test} {name}: {took:.0f} s, {errors:.0f} errors", flush=True)
                measured[name] |= figures if not errors else _failed(test, figures, errors)
    return measured


def _failed(test: str, figures: Figures, errors: float) -> Figures:
    """The memory before the load is true all the same."""
    kept = {key: value for key, value in figures.items() if key == "resident_mb"}
    return kept | {f"{test}_errors": errors}


def _is_too_slow(figures: Figures) -> bool:
    return 1e6 / figures.get("request_us", 1e6) < RATE * SPARE


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    beside = Path(sys.executable).with_name("tollway")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--secs", type=int, default=6, help="of each test in each round")
    options.add_argument("--only", default=",".join(USUAL_TESTS))
    options.add_argument("--gateways", default=",".join(ENTRIES))
    options.add_argument("--results", type=Path, help="keep the rounds here, and add to them")
    options.add_argument("--nice", type=int, default=0, help="-20: the neighbours wait (root)")
    options.add_argument("--tollway", default=str(beside), help="the command to run (%(default)s)")
    chosen = options.parse_args()
    chosen.only, chosen.gateways = chosen.only.split(","), chosen.gateways.split(",")
    return chosen


if __name__ == "__main__":
    main()
