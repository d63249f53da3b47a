"""What is counted, and how a scrape shows it.

A request counts into plain integers (`Metrics`, `ModelCounts`: well under 1 us), on the event loop
alone; only `committed` is called by the database's writer thread, and nobody else writes what it
writes. prometheus_client makes text of the integers when somebody scrapes (`Exposition`).

Every metric is one of the `Described` values below. `described` lists them all, for the reference
page and the test that holds the page to the code.
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from tollway.errors import RateLimit

CONTENT_TYPE = CONTENT_TYPE_LATEST

_FIRST_TOKEN_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_DURATION_BOUNDS = (
    0.01,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
_BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_COMMIT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_RATE_STORE_BOUNDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)

_CONDITIONS = ("serving", "open", "probing", "resting", "set aside", "unhealthy", "not running")
_HOLD_AGES_SECONDS = (10, 60, 300, 900)
_VELOCITY_SECONDS = 60


class Described(NamedTuple):
    """`name` is what a query asks for; a histogram adds `_bucket`, `_sum` and `_count` to it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


REQUESTS = Described(
    "tollway_requests_total",
    "counter",
    "Requests answered, by kind (chat, chat_stream, or the other route), model (empty where none "
    "was settled on) and HTTP status (499: the client left before there was one).",
    ("kind", "model", "status"),
)
REFUSALS = Described(
    "tollway_refusals_total",
    "counter",
    "Requests refused before anything was sent to a model, by the error's code.",
    ("code",),
)
RATE_REFUSALS = Described(
    "tollway_rate_refusals_total",
    "counter",
    "Requests refused by a limit, which has the name that the refusal's `why` gives it.",
    ("limit",),
)
AUTHENTICATION_FAILURES = Described(
    "tollway_authentication_failures_total",
    "counter",
    "Requests without a usable token.",
)
ENDINGS = Described(
    "tollway_settlements_total",
    "counter",
    "Requests that held credit and were settled, by how they ended "
    "(completed, interrupted, failed).",
    ("model", "ended"),
)
INPUT_TOKENS = Described(
    "tollway_input_tokens_total", "counter", "Input tokens that were charged for.", ("model",)
)
OUTPUT_TOKENS = Described(
    "tollway_output_tokens_total", "counter", "Output tokens that were charged for.", ("model",)
)
CREDITS_CHARGED = Described(
    "tollway_credits_charged_total", "counter", "Credits charged to accounts.", ("model",)
)
CREDITS_LAST_MINUTE = Described(
    "tollway_credits_charged_last_minute",
    "gauge",
    "Credits charged in the last 60 seconds: of the whole installation (all), and of the account "
    "that was charged the most (busiest_account).",
    ("of",),
)
SHORTFALL_CREDITS = Described(
    "tollway_shortfall_credits_total",
    "counter",
    "Credits that requests cost beyond their holds, which the operator bears. Should stay 0.",
    ("model",),
)
SHORTFALLS = Described(
    "tollway_shortfalls_total",
    "counter",
    "Requests that cost more than their hold. Should stay 0: look at the model's upstream.",
    ("model",),
)
USAGE_COUNTED = Described(
    "tollway_usage_counted_total",
    "counter",
    "Requests that used tokens which Tollway had to count, because the upstream reported none "
    "that could be believed.",
    ("model",),
)
UPSTREAM_ATTEMPTS = Described(
    "tollway_upstream_attempts_total", "counter", "Requests sent to an upstream.", ("upstream",)
)
UPSTREAM_FAILURES = Described(
    "tollway_upstream_failures_total",
    "counter",
    "Requests sent to an upstream that it failed, by the error's code.",
    ("upstream", "code"),
)
UPSTREAM_REFUSALS = Described(
    "tollway_upstream_refusals_total",
    "counter",
    "Requests that an upstream refused for what its operator must mend, by status: its key (401, "
    "403), its credit (402), its model's name (404), its rate (429). Should stay 0.",
    ("upstream", "status"),
)
UPSTREAM_OPENED = Described(
    "tollway_upstream_circuit_opened_total",
    "counter",
    "How often an upstream's circuit opened, because it failed several times in a row or half of "
    "its requests.",
    ("upstream",),
)
UPSTREAM_CONDITION = Described(
    "tollway_upstream_condition",
    "gauge",
    "1 for the condition that an upstream is in (serving, open, probing, resting, set aside, "
    "unhealthy, not running), 0 for the others.",
    ("upstream", "condition"),
)
UPSTREAM_IN_FLIGHT = Described(
    "tollway_upstream_in_flight", "gauge", "Requests that an upstream runs now.", ("upstream",)
)
UPSTREAM_WAITING = Described(
    "tollway_upstream_waiting",
    "gauge",
    "Requests that wait for a place at an upstream. One may wait for several at once.",
    ("upstream",),
)
UPSTREAM_LATENCY = Described(
    "tollway_upstream_first_byte_seconds",
    "gauge",
    "How long an upstream took lately to the first byte of its reply, by kind (chat, chat_stream); "
    "0 where there was none.",
    ("upstream", "kind"),
)
TRIES_AGAIN = Described(
    "tollway_tries_again_total",
    "counter",
    "Tries after a request's first one, because an upstream had failed.",
    ("model",),
)
TRIES_REFUSED = Described(
    "tollway_tries_refused_total",
    "counter",
    "Requests that failed and were not tried again, because the model had used up its budget for "
    "that.",
    ("model",),
)
UPSTREAM_SET_ASIDE = Described(
    "tollway_upstream_set_aside_total",
    "counter",
    "How often an upstream was set aside for a minute, because it reported more than its cap three "
    "times in a row. Should stay 0.",
    ("upstream",),
)
UPSTREAM_READY = Described(
    "tollway_upstream_ready",
    "gauge",
    "1 where a request sent to the upstream now has a chance, else 0.",
    ("upstream",),
)
FIRST_TOKEN = Described(
    "tollway_time_to_first_token_seconds",
    "histogram",
    "From a request's arrival to the first output from its model.",
    ("model",),
)
DURATION = Described(
    "tollway_request_duration_seconds",
    "histogram",
    "From a request's arrival to its settlement, for requests that held credit.",
    ("model",),
)
IN_FLIGHT = Described("tollway_requests_in_flight", "gauge", "Chat requests that run now.")
TASKS = Described(
    "tollway_tasks",
    "gauge",
    "Tasks of the event loop. Each request has one; beside them there are a few, and should not be "
    "more as time goes by.",
)
HELD = Described("tollway_credits_held", "gauge", "Credits held for requests in flight.")
HOLDS = Described("tollway_holds_open", "gauge", "Holds that have not ended.")
OLDEST_HOLD = Described(
    "tollway_hold_oldest_age_seconds",
    "gauge",
    "Age of the oldest open hold; 0 where there is none.",
)
HOLDS_BY_AGE = Described(
    "tollway_holds_open_by_age",
    "gauge",
    "Holds that have not ended and are older than so many seconds.",
    ("older_than_seconds",),
)
DATABASE_FAULT = Described(
    "tollway_database_fault",
    "gauge",
    "1 while the database cannot be written, so that requests are refused and charges wait in the "
    "journal; else 0.",
)
COMMIT_BATCH = Described(
    "tollway_commit_batch_size", "histogram", "Writes that shared one commit of the database."
)
COMMIT_SECONDS = Described(
    "tollway_commit_seconds", "histogram", "How long a commit of the database took."
)
ACCESS_LINES_LOST = Described(
    "tollway_access_log_lost_total",
    "counter",
    "Lines of the access log that could not be written. Should stay 0: look at its disk.",
)
RATES_EXACT = Described(
    "tollway_rates_exact",
    "gauge",
    "1 while rates are counted over all replicas; 0 while the rate store is gone, or recovers, and "
    "this replica admits its share of each limit.",
)
REPLICAS_LIVE = Described(
    "tollway_replicas_live",
    "gauge",
    "Replicas that share the rate store, as last known; 1 without one.",
)
RATE_STORE_FALLS = Described(
    "tollway_rate_store_falls_total",
    "counter",
    "How often the rate store was lost, or did not answer in time.",
)
RATE_STORE_SECONDS = Described(
    "tollway_rate_store_seconds",
    "histogram",
    "How long a call of the rate store took. A call carries what has gathered since the last one.",
)
RELOADS = Described(
    "tollway_configuration_reloads_total",
    "counter",
    "How often a changed configuration was put in place (ok) or refused (refused: the log says "
    "what is wrong, and the one before stays).",
    ("result",),
)
RELOADED_AT = Described(
    "tollway_configuration_reloaded_timestamp_seconds",
    "gauge",
    "When the configuration that runs was put in place, by the wall clock.",
)
BUILD = Described(
    "tollway_build_info", "gauge", "Always 1; its label is the version.", ("version",)
)

_OURS = (
    REQUESTS,
    REFUSALS,
    RATE_REFUSALS,
    AUTHENTICATION_FAILURES,
    ENDINGS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    CREDITS_CHARGED,
    CREDITS_LAST_MINUTE,
    SHORTFALL_CREDITS,
    SHORTFALLS,
    USAGE_COUNTED,
    UPSTREAM_ATTEMPTS,
    UPSTREAM_FAILURES,
    UPSTREAM_REFUSALS,
    UPSTREAM_OPENED,
    UPSTREAM_SET_ASIDE,
    UPSTREAM_READY,
    UPSTREAM_CONDITION,
    UPSTREAM_IN_FLIGHT,
    UPSTREAM_WAITING,
    UPSTREAM_LATENCY,
    TRIES_AGAIN,
    TRIES_REFUSED,
    FIRST_TOKEN,
    DURATION,
    IN_FLIGHT,
    TASKS,
    HELD,
    HOLDS,
    OLDEST_HOLD,
    HOLDS_BY_AGE,
    DATABASE_FAULT,
    COMMIT_BATCH,
    COMMIT_SECONDS,
    ACCESS_LINES_LOST,
    RATES_EXACT,
    REPLICAS_LIVE,
    RATE_STORE_FALLS,
    RATE_STORE_SECONDS,
    RELOADS,
    RELOADED_AT,
    BUILD,
)
# Read from /proc by prometheus_client, so only on Linux.
_OF_THE_PROCESS = (
    Described("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes."),
    Described("process_resident_memory_bytes", "gauge", "Resident memory size in bytes."),
    Described(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
    ),
    Described(
        "process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds."
    ),
    Described("process_open_fds", "gauge", "Number of open file descriptors."),
    Described("process_max_fds", "gauge", "Maximum number of open file descriptors."),
)


def described() -> tuple[Described, ...]:
    """Every metric that `/metrics` may show."""
    return _OURS + _OF_THE_PROCESS


# --- what requests count into ---------------------------------------------------------------------


class Histogram:
    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class ModelCounts:
    """Of one model: its settled requests."""

    __slots__ = (
        "counted",
        "credits",
        "duration",
        "ended",
        "first_token",
        "input_tokens",
        "output_tokens",
        "shortfall_credits",
        "shortfalls",
        "tries_again",
    )

    def __init__(self) -> None:
        self.ended = {"completed": 0, "interrupted": 0, "failed": 0}
        self.input_tokens = 0
        self.output_tokens = 0
        self.credits = 0
        self.shortfall_credits = 0
        self.shortfalls = 0
        self.counted = 0
        self.tries_again = 0
        self.first_token = Histogram(_FIRST_TOKEN_BOUNDS)
        self.duration = Histogram(_DURATION_BOUNDS)


class Velocity:
    """Credits charged in the last 60 seconds, by whole seconds: of all, and of each account that
    was charged any."""

    __slots__ = ("_accounts", "_seconds", "_total")

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, dict[str, int]]] = deque()
        self._accounts: dict[str, int] = {}
        self._total = 0

    def charged(self, account_id: str, credits: int, monotonic: float) -> None:
        second = int(monotonic)
        seconds = self._seconds
        # Never back, although requests are told a little out of order.
        if not seconds or seconds[-1][0] < second:
            self._forget(monotonic)
            seconds.append((second, {}))
        of_second = seconds[-1][1]
        of_second[account_id] = of_second.get(account_id, 0) + credits
        self._accounts[account_id] = self._accounts.get(account_id, 0) + credits
        self._total += credits

    def last_minute(self, monotonic: float) -> tuple[int, int]:
        """Of all, and of the account with the most."""
        self._forget(monotonic)
        return self._total, max(self._accounts.values(), default=0)

    def _forget(self, monotonic: float) -> None:
        seconds = self._seconds
        while seconds and monotonic - seconds[0][0] > _VELOCITY_SECONDS:
            _, of_second = seconds.popleft()
            for account_id, credits in of_second.items():
                self._total -= credits
                left = self._accounts[account_id] - credits
                if left:
                    self._accounts[account_id] = left
                else:
                    del self._accounts[account_id]


class Metrics:
    """The counters. Their keys are what we configured or wrote, never what a client sent."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        self.refusals: dict[str, int] = {}
        self.rate_refusals: dict[RateLimit, int] = dict.fromkeys(get_args(RateLimit), 0)
        self.authentication_failures = 0
        self.models: dict[str, ModelCounts] = {}
        self.upstream_attempts: dict[str, int] = {}
        self.upstream_failures: dict[tuple[str, str], int] = {}
        self.upstream_refusals: dict[tuple[str, int], int] = {}
        self.velocity = Velocity()
        self.access_lines_lost = 0
        self.before_reading: list[Callable[[], None]] = []
        """Called before a scrape: whoever has something that is not counted yet counts it."""
        self.rates_exact = True
        self.replicas_live = 1
        self.rate_store_falls = 0
        self.rate_store_seconds = Histogram(_RATE_STORE_BOUNDS)
        self.reloads = {"ok": 0, "refused": 0}
        self.configured_at = time.time()
        self._commit_batch = Histogram(_BATCH_BOUNDS)
        self._commit_seconds = Histogram(_COMMIT_BOUNDS)

    def of(self, model: str) -> ModelCounts:
        counts = self.models.get(model)
        if counts is None:
            counts = self.models[model] = ModelCounts()
        return counts

    def request(self, kind: str, model: str, status: int) -> None:
        key = (kind, model, status)
        requests = self.requests
        requests[key] = requests.get(key, 0) + 1

    def refused(self, code: str) -> None:
        self.refusals[code] = self.refusals.get(code, 0) + 1

    def attempted(self, upstream: str, status: int | None, error: str | None) -> None:
        attempts = self.upstream_attempts
        attempts[upstream] = attempts.get(upstream, 0) + 1
        if error is None:
            return
        failure = (upstream, error)
        self.upstream_failures[failure] = self.upstream_failures.get(failure, 0) + 1
        if status in (401, 402, 403, 404, 429):
            refusal = (upstream, status)
            self.upstream_refusals[refusal] = self.upstream_refusals.get(refusal, 0) + 1

    def reloaded(self, *, ok: bool) -> None:
        self.reloads["ok" if ok else "refused"] += 1
        if ok:
            self.configured_at = time.time()

    def committed(self, pieces: int, seconds: float) -> None:
        """Called by the database's writer thread, and by nobody else."""
        self._commit_batch.observe(pieces)
        self._commit_seconds.observe(seconds)

    def families(self) -> Iterator[Metric]:
        for count in self.before_reading:
            count()
        yield _counters(REQUESTS, ((k, m, str(s), n) for (k, m, s), n in self.requests.items()))
        yield _counters(REFUSALS, self.refusals.items())
        yield _counters(RATE_REFUSALS, self.rate_refusals.items())
        yield _counters(AUTHENTICATION_FAILURES, [(self.authentication_failures,)])
        yield _counters(
            ENDINGS, ((m, e, n) for m, c in self.models.items() for e, n in c.ended.items())
        )
        yield self._by_model(INPUT_TOKENS, lambda counts: counts.input_tokens)
        yield self._by_model(OUTPUT_TOKENS, lambda counts: counts.output_tokens)
        yield self._by_model(CREDITS_CHARGED, lambda counts: counts.credits)
        yield self._by_model(SHORTFALL_CREDITS, lambda counts: counts.shortfall_credits)
        yield self._by_model(SHORTFALLS, lambda counts: counts.shortfalls)
        yield self._by_model(USAGE_COUNTED, lambda counts: counts.counted)
        yield _counters(UPSTREAM_ATTEMPTS, self.upstream_attempts.items())
        yield _counters(
            UPSTREAM_FAILURES, ((u, c, n) for (u, c), n in self.upstream_failures.items())
        )
        yield _counters(
            UPSTREAM_REFUSALS, ((u, str(s), n) for (u, s), n in self.upstream_refusals.items())
        )
        yield self._by_model(TRIES_AGAIN, lambda counts: counts.tries_again)
        yield _histograms(FIRST_TOKEN, ((m, c.first_token) for m, c in self.models.items()))
        yield _histograms(DURATION, ((m, c.duration) for m, c in self.models.items()))
        yield _histograms(COMMIT_BATCH, [(self._commit_batch,)])
        yield _histograms(COMMIT_SECONDS, [(self._commit_seconds,)])
        yield _counters(ACCESS_LINES_LOST, [(self.access_lines_lost,)])
        yield _gauge(RATES_EXACT, [(int(self.rates_exact),)])
        yield _gauge(REPLICAS_LIVE, [(self.replicas_live,)])
        yield _counters(RATE_STORE_FALLS, [(self.rate_store_falls,)])
        yield _histograms(RATE_STORE_SECONDS, [(self.rate_store_seconds,)])
        yield _counters(RELOADS, self.reloads.items())
        yield _gauge(RELOADED_AT, [(self.configured_at,)])

    def _by_model(self, what: Described, value: Callable[[ModelCounts], int]) -> Metric:
        return _counters(what, ((model, value(counts)) for model, counts in self.models.items()))


# --- what a scrape sees ---------------------------------------------------------------------------


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
        self._upstreams = upstreams
        self._tries_refused = tries_refused
        self._database_fault = database_fault
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def page(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics.families()
        holds = list(self._open_holds())
        now = self._now()
        # The wall clock may be set back under a hold.
        ages = [max(0.0, now - hold.held_at) for hold in holds]
        of_all, of_busiest = self._metrics.velocity.last_minute(self._monotonic())
        yield _gauge(IN_FLIGHT, [(self._in_flight(),)])
        yield _gauge(TASKS, [(self._tasks(),)])
        yield _gauge(HELD, [(sum(hold.amount for hold in holds),)])
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


def merged_pages(label: str, pages: Mapping[str, str]) -> str:
    """One page of several processes' pages, in Prometheus's text format: each sample gets the
    label, with the name of its page."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for name, page in pages.items():
        family = ""
        for line in page.splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                heads.setdefault(family, [line])
                samples.setdefault(family, [])
            elif line.startswith("#"):
                if len(heads[family]) < 2:
                    heads[family].append(line)
            else:
                samples[family].append(_labelled(line, f'{label}="{name}"'))
    return "".join(
        f"{line}\n" for family, head in heads.items() for line in (*head, *samples[family])
    )


def _labelled(sample: str, label: str) -> str:
    named, value = sample.rsplit(" ", 1)
    if named.endswith("}"):
        return f"{named[:-1]},{label}}} {value}"
    return f"{named}{{{label}}} {value}"


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
