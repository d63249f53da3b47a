"""What saturates first as replicas and accounts grow: a simulated span of traffic, its work counted
at every step, and each step's work priced with what it was measured to cost.

    python -m benchmarks.scale_simulation

Requests arrive at random, accounts by a power law (the busiest of a million has about 7 % of all
requests), and any replica gets any request. Replicas send to the rate store what has gathered while
a call was on its way, take credit on lease for the accounts that they serve, and write the charges
of each tick in one transaction a database shard. Nothing here is measured: `COSTS` is, by the
commands beside each value. docs/explanation/scale.md draws the conclusions.
"""

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one core, except where they say otherwise. Measured on a virtual machine with two
    cores that other programs shared; the best of several runs."""

    request: float = 130e-6
    """Of a replica, a plain request with SQLite: benchmarks.ratio."""
    charge_here: float = 76e-6
    """Of a replica, a hold and a charge in Postgres: benchmarks.charges."""
    call_here: float = 47e-6
    """Of a replica, a call of the rate store: benchmarks.rate_store, one at a time less a place."""
    place_here: float = 6.1e-6
    """Of a replica, a place within a call: the same, 64 at a time."""
    call: float = 23e-6
    """Of the rate store, a call: the same, one at a time less a place."""
    place: float = 14.5e-6
    """Of the rate store, a place taken and left: the same, 64 at a time."""
    field: float = 0.35e-6
    """Of the rate store, each replica that has requests of the account in flight."""
    charge: float = 250e-6
    """Of the database, a charge: benchmarks.charges, 512 at a time, less the next two."""
    lease: float = 122e-6
    """Of the database, credit taken or returned: one account without leases less one with."""
    transaction: float = 730e-6
    """Of the database, a transaction: 1,000 accounts, 64 at a time less 512, a transaction."""
    commit_seconds: float = 4e-3
    """Of a transaction of the database, on the clock, while it has the account's row."""


COSTS = Costs()


@dataclass(frozen=True, slots=True)
class Scenario:
    """`headroom`: how much of a core may be used; the rest is for bursts and for a lost peer."""

    replicas: int
    accounts: int
    requests_per_second: float
    database_shards: int = 1
    store_shards: int = 1
    replicas_an_account: int | None = None
    """None: the load balancer sends an account anywhere."""
    lease_requests: int = 64
    lease_seconds: float = 5.0
    tick_seconds: float = 0.02
    round_trip_seconds: float = 0.3e-3
    request_seconds: float = 3.0
    settle_seconds_max: float = 0.5
    database_cores: int = 8
    headroom: float = 0.6
    skew: float = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """What was done in the simulated seconds. `hot` is the busiest account."""

    seconds: float
    requests: Counter[int]
    """Of each replica."""
    calls: Counter[tuple[int, int]]
    """Of the rate store, by replica and shard."""
    places: Counter[int]
    """Of each shard of the rate store."""
    fields: Counter[int]
    """The same: how many replicas had requests of the account, summed over the places."""
    charges: Counter[int]
    """Of each shard of the database."""
    leases: Counter[int]
    transactions: Counter[int]
    hot_requests: int
    hot_replicas: int


@dataclass(frozen=True, slots=True)
class Step:
    """`load` of the fullest part: past 1 it has saturated. `needs`: how many parts would do."""

    name: str
    load: float
    needs: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=200_000, help="simulated in each scenario")
    arguments = parser.parse_args()
    print(
        "| replicas | requests/s | shards | replicas an account | first to saturate | "
        f"{' | '.join(STEPS)} |"
    )
    print("|--:|--:|--:|--:|---|" + "--:|" * len(STEPS))
    for scenario in SCENARIOS:
        work = simulate(scenario, arguments.seed, arguments.requests)
        steps = steps_of(scenario, work, COSTS)
        first = max(steps, key=lambda step: step.load)
        cells = [f"{step.load:.2f} ({step.needs})" for step in steps]
        print(
            f"| {scenario.replicas:,} | {scenario.requests_per_second:,.0f} | "
            f"{scenario.database_shards} + {scenario.store_shards} | "
            f"{scenario.replicas_an_account or 'all'} | {first.name} | {' | '.join(cells)} |"
        )


SCENARIOS = (
    Scenario(10, 1_000_000, 2_000),
    Scenario(100, 1_000_000, 20_000),
    Scenario(100, 1_000_000, 20_000, database_shards=8, store_shards=2, replicas_an_account=4),
    Scenario(1_000, 1_000_000, 200_000),
    Scenario(
        1_000,
        1_000_000,
        200_000,
        database_shards=64,
        store_shards=32,
        replicas_an_account=16,
    ),
)

STEPS = (
    "replicas",
    "rate store",
    "database",
    "hottest account: its rate",
    "hottest account: its chain",
)


# --- the traffic ----------------------------------------------------------------------------------

Arrival = tuple[float, int, int]
"""When, at which replica, of which account."""


def simulate(scenario: Scenario, seed: int, requests: int) -> Work:
    """So many requests, at the scenario's pace."""
    random = Random(seed)
    seconds = requests / scenario.requests_per_second
    arrivals = _arrivals(scenario, random, requests, seconds)
    calls, places, fields = _rate_store(scenario, arrivals)
    charges, transactions = _settlements(scenario, arrivals)
    ((hot, hot_requests),) = Counter(account for _, _, account in arrivals).most_common(1)
    return Work(
        seconds=seconds,
        requests=Counter(replica for _, replica, _ in arrivals),
        calls=calls,
        places=places,
        fields=fields,
        charges=charges,
        leases=_leases(scenario, arrivals),
        transactions=transactions,
        hot_requests=hot_requests,
        hot_replicas=len({replica for _, replica, account in arrivals if account == hot}),
    )


def _arrivals(scenario: Scenario, random: Random, requests: int, seconds: float) -> list[Arrival]:
    weights = accumulate((rank + 1) ** -scenario.skew for rank in range(scenario.accounts))
    accounts = random.choices(range(scenario.accounts), cum_weights=list(weights), k=requests)
    times = sorted(random.random() * seconds for _ in range(requests))
    spread = scenario.replicas_an_account or scenario.replicas
    return [
        (at, (account + random.randrange(spread)) % scenario.replicas, account)
        for at, account in zip(times, accounts, strict=True)
    ]


def _rate_store(
    scenario: Scenario, arrivals: Sequence[Arrival]
) -> tuple[Counter[tuple[int, int]], Counter[int], Counter[int]]:
    """A replica has one call on its way to each shard; what comes meanwhile waits for the next."""
    calls: Counter[tuple[int, int]] = Counter()
    places: Counter[int] = Counter()
    fields: Counter[int] = Counter()
    next_at: dict[tuple[int, int], float] = {}
    served_at: dict[int, dict[int, float]] = {}
    for at, replica, account in arrivals:
        shard = account % scenario.store_shards
        places[shard] += 1
        running = served_at.setdefault(account, {})
        running[replica] = at
        fields[shard] += sum(at - then < scenario.request_seconds for then in running.values())
        if next_at.get((replica, shard), 0.0) <= at:
            calls[replica, shard] += 1
            # Sent at once; the call that gathers what comes meanwhile leaves when it is back.
            next_at[replica, shard] = at + scenario.round_trip_seconds
    return calls, places, fields


def _leases(scenario: Scenario, arrivals: Sequence[Arrival]) -> Counter[int]:
    """A replica takes credit for so many requests of an account, and gives back what is idle."""
    leases: Counter[int] = Counter()
    left: dict[tuple[int, int], tuple[int, float]] = {}
    for at, replica, account in arrivals:
        requests, idle_at = left.get((replica, account), (0, 0.0))
        if requests == 0 or idle_at < at:
            leases[account % scenario.database_shards] += 1
            requests = scenario.lease_requests
        left[replica, account] = (requests - 1, at + scenario.lease_seconds)
    return leases


def _settlements(
    scenario: Scenario, arrivals: Sequence[Arrival]
) -> tuple[Counter[int], Counter[int]]:
    """Each replica writes what has settled in a tick in one transaction a shard."""
    charges: Counter[int] = Counter()
    ticks: set[tuple[int, int, int]] = set()
    for at, replica, account in arrivals:
        shard = account % scenario.database_shards
        charges[shard] += 1
        ticks.add((int(at / scenario.tick_seconds), replica, shard))
    return charges, Counter(shard for _, _, shard in ticks)


# --- what it comes to -----------------------------------------------------------------------------


def steps_of(scenario: Scenario, work: Work, costs: Costs) -> list[Step]:
    """In the order of `STEPS`. A load of 1 is all of `headroom`."""
    usable = work.seconds * scenario.headroom
    calls_of_replica: Counter[int] = Counter()
    calls_of_shard: Counter[int] = Counter()
    for (replica, shard), count in work.calls.items():
        calls_of_replica[replica] += count
        calls_of_shard[shard] += count
    replicas = [
        work.requests[replica] * (costs.request + costs.charge_here + costs.place_here)
        + calls_of_replica[replica] * costs.call_here
        for replica in range(scenario.replicas)
    ]
    stores = [
        calls_of_shard[shard] * costs.call
        + work.places[shard] * costs.place
        + work.fields[shard] * costs.field
        for shard in range(scenario.store_shards)
    ]
    databases = [
        (
            work.charges[shard] * costs.charge
            + work.leases[shard] * costs.lease
            + work.transactions[shard] * costs.transaction
        )
        / scenario.database_cores
        for shard in range(scenario.database_shards)
    ]
    # An account's entries are a chain: the replicas that serve it write it one after another.
    hot_wait = work.hot_replicas * costs.commit_seconds / scenario.settle_seconds_max
    hot_rate = work.hot_requests * costs.place / usable
    return [
        _step("replicas", replicas, usable),
        _step("rate store", stores, usable),
        _step("database", databases, usable),
        Step("hottest account: its rate", hot_rate, 1),
        Step("hottest account: its chain", hot_wait, 1),
    ]


def _step(name: str, busy_seconds: Sequence[float], usable: float) -> Step:
    total = sum(busy_seconds) / usable
    return Step(name, max(busy_seconds) / usable, max(1, math.ceil(total)))


if __name__ == "__main__":
    main()
