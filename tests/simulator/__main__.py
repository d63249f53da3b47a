"""`--seed N` replays one schedule and tells its story; `--schedules N` runs so many, from `--first`
on, and prints the figures."""

import argparse
import sys
import time

from tests.simulator.judge import Figures
from tests.simulator.many import run_many
from tests.simulator.schedule import a_stage


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    options.add_argument("--seed", type=int, help="replay this one")
    options.add_argument("--schedules", type=int, default=2_000)
    options.add_argument("--first", type=int, default=0, help="the first of them")
    options.add_argument("--stop-at", type=int, default=10, help="after so many that failed")
    chosen = options.parse_args()
    if chosen.seed is not None:
        return _replay(chosen.seed)
    return _run(chosen.first, chosen.schedules, chosen.stop_at)


def _replay(seed: int) -> int:
    with a_stage() as stage:
        verdict = stage.run(seed)
    _say(*verdict.story, "", *verdict.complaints, f"{verdict.figures}")
    return bool(verdict.complaints)


def _run(first: int, count: int, stop_at: int) -> int:
    figures = Figures()
    failed: list[int] = []
    began = time.monotonic()
    for batch in run_many(first, count):
        figures.add(batch.figures)
        for seed, complaints in batch.failed:
            failed.append(seed)
            _say(f"seed {seed}:", *(f"    {words}" for words in complaints))
        if len(failed) >= stop_at:
            break
    _say(*(f"{name:28} {getattr(figures, name)}" for name in figures.__struct_fields__))
    _say(f"{'failed':28} {len(failed)} {failed}", f"{time.monotonic() - began:.1f} s")
    return bool(failed)


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
