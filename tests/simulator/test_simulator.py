from collections.abc import Callable

import pytest
from tests.simulator.judge import Figures
from tests.simulator.many import run_many
from tests.simulator.schedule import a_stage

SCHEDULES = 2_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_schedule_loses_a_charge_makes_one_twice_or_overspends(
    record_property: Callable[[str, object], None],
) -> None:
    figures = Figures()
    failed: dict[int, list[str]] = {}
    for batch in run_many(0, SCHEDULES):
        figures.add(batch.figures)
        failed |= dict(batch.failed)
    record_property("simulator", str(figures))
    assert failed == {}, "replay one with: python -m tests.simulator --seed N"
    # What it looked at, so that it cannot pass by looking at nothing.
    assert figures.schedules == SCHEDULES
    assert min(figures.charges, figures.interrupted, figures.counted) > 500
    assert min(figures.kills, figures.recovered, figures.replayed) > 20


def test_a_seed_tells_the_same_story_each_time() -> None:
    with a_stage() as stage:
        stories = [stage.run(2).story for _ in range(2)]
    assert stories[0] == stories[1]
    assert len(stories[0]) > 10
