"""What a scrape sees: all that is counted, and what can be looked up at that moment.
prometheus_client makes the text, and only then."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from tollway.metrics.counters import Histogram, Metrics, ModelCounts
from tollway.metrics.described import (
    ACCESS_LINES_LOST,
    AUTHENTICATION_FAILURES,
    BUILD,
    COMMIT_BATCH,
    COMMIT_SECONDS,
    CREDITS_CHARGED,
    CREDITS_LAST_MINUTE,
    DATABASE_FAULT,
    DURATION,
    ENDINGS,
    FIRST_TOKEN,
    HELD,
    HOLDS,
    HOLDS_BY_AGE,
    IN_FLIGHT,
    INPUT_TOKENS,
    LEASED,
    OLDEST_HOLD,
    OUTPUT_TOKENS,
    RATE_REFUSALS,
    RATE_STORE_FALLS,
    RATE_STORE_SECONDS,
    RATES_EXACT,
    REFUSALS,
    RELOADED_AT,
    RELOADS,
    REPLICAS_LIVE,
    REQUESTS,
    SHORTFALL_CREDITS,
    SHORTFALLS,
    TASKS,
    TRIES_AGAIN,
    TRIES_REFUSED,
    UPSTREAM_ATTEMPTS,
    UPSTREAM_CONDITION,
    UPSTREAM_FAILURES,
    UPSTREAM_IN_FLIGHT,
    UPSTREAM_LATENCY,
    UPSTREAM_OPENED,
    UPSTREAM_READY,
    UPSTREAM_REFUSALS,
    UPSTREAM_SET_ASIDE,
    UPSTREAM_WAITING,
    USAGE_COUNTED,
    Described,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST

_CONDITIONS = ("serving", "open", "probing", "resting", "set aside", "unhealthy", "not running")
_HOLD_AGES_SECONDS = (10, 60, 300, 900)


class UpstreamNow(NamedTuple):
    """An upstream at the moment of a scrape. `latency` is seconds, of whole replies and of
    streams."""

    name: str
    ready: bool
    condition: str
    in_flight: int
    waiting: int
    latency: Sequence[float]
    times_opened: int
    times_set_aside: int


class OpenHold(Protocol):
    @property
    def amount(self) -> int: ...

    @property
    def held_at(self) -> float: ...


class Exposition(Collector):
    """The page of `/metrics`: the counters, and what can be looked up at the moment of a scrape."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        version: str,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        in_flight: Callable[[], int],
        tasks: Callable[[], int],
        open_holds: Callable[[], Iterable[OpenHold]],
        leased: Callable[[], int],
        upstreams: Callable[[], Iterable[UpstreamNow]],
        tries_refused: Callable[[], Iterable[tuple[str, int]]],
        database_fault: Callable[[], str | None],
    ) -> None:
        self._metrics = metrics
        self._version = version
        self._now = now
        self._monotonic = monotonic
        self._in_flight = in_flight
        self._tasks = tasks
        self._open_holds = open_holds
        self._leased = leased
        self._upstreams = upstreams
        self._tries_refused = tries_refused
        self._database_fault = database_fault
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def page(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from _counted(self._metrics)
        holds = list(self._open_holds())
        now = self._now()
        # The wall clock may be set back under a hold.
        ages = [max(0.0, now - hold.held_at) for hold in holds]
        of_all, of_busiest = self._metrics.velocity.last_minute(self._monotonic())
        yield _gauge(IN_FLIGHT, [(self._in_flight(),)])
        yield _gauge(TASKS, [(self._tasks(),)])
        yield _gauge(HELD, [(sum(hold.amount for hold in holds),)])
        yield _gauge(LEASED, [(self._leased(),)])
        yield _gauge(HOLDS, [(len(holds),)])
        yield _gauge(OLDEST_HOLD, [(max(ages, default=0.0),)])
        yield _gauge(
            HOLDS_BY_AGE,
            ((str(bound), sum(age > bound for age in ages)) for bound in _HOLD_AGES_SECONDS),
        )
        yield _gauge(CREDITS_LAST_MINUTE, [("all", of_all), ("busiest_account", of_busiest)])
        yield _gauge(DATABASE_FAULT, [(int(self._database_fault() is not None),)])
        yield from self._of_upstreams()
        yield _counters(TRIES_REFUSED, self._tries_refused())
        yield _gauge(BUILD, [(self._version, 1)])

    def _of_upstreams(self) -> Iterator[Metric]:
        upstreams = list(self._upstreams())
        yield _gauge(UPSTREAM_READY, ((one.name, int(one.ready)) for one in upstreams))
        yield _gauge(
            UPSTREAM_CONDITION,
            (
                (one.name, condition, int(one.condition == condition))
                for one in upstreams
                for condition in _CONDITIONS
            ),
        )
        yield _gauge(UPSTREAM_IN_FLIGHT, ((one.name, one.in_flight) for one in upstreams))
        yield _gauge(UPSTREAM_WAITING, ((one.name, one.waiting) for one in upstreams))
        yield _gauge(
            UPSTREAM_LATENCY,
            (
                (one.name, kind, seconds)
                for one in upstreams
                for kind, seconds in zip(("chat", "chat_stream"), one.latency, strict=True)
            ),
        )
        yield _counters(UPSTREAM_OPENED, ((one.name, one.times_opened) for one in upstreams))
        yield _counters(UPSTREAM_SET_ASIDE, ((one.name, one.times_set_aside) for one in upstreams))


def _counted(metrics: Metrics) -> Iterator[Metric]:
    metrics.catch_up()
    yield _counters(REQUESTS, ((k, m, str(s), n) for (k, m, s), n in metrics.requests.items()))
    yield _counters(REFUSALS, metrics.refusals.items())
    yield _counters(RATE_REFUSALS, metrics.rate_refusals.items())
    yield _counters(AUTHENTICATION_FAILURES, [(metrics.authentication_failures,)])
    yield _counters(
        ENDINGS, ((m, e, n) for m, c in metrics.models.items() for e, n in c.ended.items())
    )
    yield _by_model(metrics, INPUT_TOKENS, lambda counts: counts.input_tokens)
    yield _by_model(metrics, OUTPUT_TOKENS, lambda counts: counts.output_tokens)
    yield _by_model(metrics, CREDITS_CHARGED, lambda counts: counts.credits)
    yield _by_model(metrics, SHORTFALL_CREDITS, lambda counts: counts.shortfall_credits)
    yield _by_model(metrics, SHORTFALLS, lambda counts: counts.shortfalls)
    yield _by_model(metrics, USAGE_COUNTED, lambda counts: counts.counted)
    yield _counters(UPSTREAM_ATTEMPTS, metrics.upstream_attempts.items())
    yield _counters(
        UPSTREAM_FAILURES, ((u, c, n) for (u, c), n in metrics.upstream_failures.items())
    )
    yield _counters(
        UPSTREAM_REFUSALS, ((u, str(s), n) for (u, s), n in metrics.upstream_refusals.items())
    )
    yield _by_model(metrics, TRIES_AGAIN, lambda counts: counts.tries_again)
    yield _histograms(FIRST_TOKEN, ((m, c.first_token) for m, c in metrics.models.items()))
    yield _histograms(DURATION, ((m, c.duration) for m, c in metrics.models.items()))
    yield _histograms(COMMIT_BATCH, [(metrics.commit_batch,)])
    yield _histograms(COMMIT_SECONDS, [(metrics.commit_seconds,)])
    yield _counters(ACCESS_LINES_LOST, [(metrics.access_lines_lost,)])
    yield _gauge(RATES_EXACT, [(int(metrics.rates_exact),)])
    yield _gauge(REPLICAS_LIVE, [(metrics.replicas_live,)])
    yield _counters(RATE_STORE_FALLS, [(metrics.rate_store_falls,)])
    yield _histograms(RATE_STORE_SECONDS, [(metrics.rate_store_seconds,)])
    yield _counters(RELOADS, metrics.reloads.items())
    yield _gauge(RELOADED_AT, [(metrics.configured_at,)])


def _by_model(metrics: Metrics, what: Described, value: Callable[[ModelCounts], int]) -> Metric:
    return _counters(what, ((model, value(counts)) for model, counts in metrics.models.items()))


# A row is the values of its labels, in order, and then the number.
_Row = tuple[str | float, ...]


def _counters(what: Described, rows: Iterable[_Row]) -> Metric:
    family = CounterMetricFamily(what.name, what.help, labels=what.labels)
    for *labels, value in rows:
        family.add_metric([str(label) for label in labels], float(value))
    return family


def _gauge(what: Described, rows: Iterable[_Row]) -> Metric:
    family = GaugeMetricFamily(what.name, what.help, labels=what.labels)
    for *labels, value in rows:
        family.add_metric([str(label) for label in labels], float(value))
    return family


def _histograms(
    what: Described, rows: Iterable[tuple[Histogram] | tuple[str, Histogram]]
) -> Metric:
    family = HistogramMetricFamily(what.name, what.help, labels=what.labels)
    for row in rows:
        labels, histogram = list(row[:-1]), row[-1]
        assert isinstance(histogram, Histogram)
        below = 0
        buckets: list[tuple[str, float]] = []
        bounds = [*(repr(bound) for bound in histogram.bounds), "+Inf"]
        for bound, count in zip(bounds, histogram.counts, strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric([str(label) for label in labels], buckets, histogram.sum)
    return family
