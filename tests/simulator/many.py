"""Many schedules, in as many processes as there are processors."""

import gc
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from msgspec import Struct
from tests.simulator.judge import Figures
from tests.simulator.schedule import a_stage

SCHEDULES_PER_BATCH = 50


class Batch(Struct, frozen=True):
    """`failed` are the seeds with what was wrong."""

    figures: Figures
    failed: list[tuple[int, list[str]]]


def run_many(first: int, count: int) -> Iterator[Batch]:
    starts = range(first, first + count, SCHEDULES_PER_BATCH)
    sizes = [min(SCHEDULES_PER_BATCH, first + count - start) for start in starts]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        try:
            yield from pool.map(run_batch, starts, sizes)
        finally:
            pool.shutdown(cancel_futures=True)


def run_batch(first: int, count: int) -> Batch:
    batch = Batch(Figures(), [])
    with a_stage() as stage:
        for seed in range(first, first + count):
            verdict = stage.run(seed)
            batch.figures.add(verdict.figures)
            if verdict.complaints:
                batch.failed.append((seed, verdict.complaints))
    gc.collect()
    return batch
