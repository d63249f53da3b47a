"""The simulation that docs/explanation/scale.md draws on keeps to what must hold of any traffic."""

from dataclasses import replace

import pytest
from benchmarks.scale_simulation import (
    COSTS,
    STEPS,
    Costs,
    Scenario,
    Step,
    Work,
    simulate,
    steps_of,
)

REQUESTS = 20_000
SCENARIO = Scenario(10, 1_000, 10_000, database_shards=4, store_shards=2)


@pytest.fixture(scope="module")
def work() -> Work:
    return simulate(SCENARIO, 1, REQUESTS)


def loads(scenario: Scenario, costs: Costs = COSTS, seed: int = 1) -> dict[str, Step]:
    steps = steps_of(scenario, simulate(scenario, seed, REQUESTS), costs)
    return {step.name: step for step in steps}


def test_every_request_is_served_takes_a_place_and_is_charged_once(work: Work) -> None:
    assert sum(work.requests.values()) == REQUESTS
    assert sum(work.places.values()) == REQUESTS
    assert sum(work.charges.values()) == REQUESTS


def test_there_is_no_call_transaction_or_lease_that_nobody_needed(work: Work) -> None:
    assert 0 < sum(work.calls.values()) <= REQUESTS
    assert 0 < sum(work.transactions.values()) <= REQUESTS
    assert REQUESTS / SCENARIO.lease_requests <= sum(work.leases.values()) <= REQUESTS


def test_the_same_seed_makes_the_same_work_and_another_does_not(work: Work) -> None:
    assert simulate(SCENARIO, 1, REQUESTS) == work
    assert simulate(SCENARIO, 2, REQUESTS) != work


def test_the_steps_are_those_that_the_table_names(work: Work) -> None:
    assert tuple(step.name for step in steps_of(SCENARIO, work, COSTS)) == STEPS


def test_what_costs_twice_as_much_is_loaded_twice_as_much(work: Work) -> None:
    doubled = Costs(
        **{
            name: getattr(COSTS, name) * (1 if name == "commit_seconds" else 2)
            for name in Costs.__dataclass_fields__
        }
    )
    for once, twice in zip(
        steps_of(SCENARIO, work, COSTS)[:4], steps_of(SCENARIO, work, doubled)[:4], strict=True
    ):
        assert twice.load == pytest.approx(2 * once.load)  # pyright: ignore[reportUnknownMemberType]


def test_twice_the_shards_take_half_the_load_and_no_shard_is_forgotten() -> None:
    few, many = loads(SCENARIO), loads(replace(SCENARIO, database_shards=8, store_shards=4))

    for name in ("database", "rate store"):
        assert 0.4 < many[name].load / few[name].load < 0.9
        assert few[name].load <= few[name].needs


def test_an_account_that_stays_with_few_replicas_waits_for_few_and_needs_fewer_leases() -> None:
    anywhere, near = SCENARIO, replace(SCENARIO, replicas_an_account=2)

    assert loads(near)["hottest account: its chain"].load == 2 / 10 * (
        loads(anywhere)["hottest account: its chain"].load
    )
    assert sum(simulate(near, 1, REQUESTS).leases.values()) < sum(
        simulate(anywhere, 1, REQUESTS).leases.values()
    )


def test_more_requests_in_a_call_make_fewer_calls() -> None:
    slow = replace(SCENARIO, round_trip_seconds=10 * SCENARIO.round_trip_seconds)

    assert sum(simulate(slow, 1, REQUESTS).calls.values()) < sum(
        simulate(SCENARIO, 1, REQUESTS).calls.values()
    )
