"""Every metric: what a query asks for, and what it means. `described` lists them all, for the
reference page and the test that holds the page to the code."""

from typing import Literal, NamedTuple


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
    "tollway_credits_charged_total",
    "counter",
    "Credits charged to accounts for requests that ended in this process. What a start settles of "
    "a process that was killed is in its log and in the ledger (`tollway usage`) alone.",
    ("model",),
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
    "Credits that requests cost and that could not be charged, which the operator bears: beyond "
    "their hold, or late and beyond what the account had left. Should stay 0.",
    ("model",),
)
SHORTFALLS = Described(
    "tollway_shortfalls_total",
    "counter",
    "Requests that cost more than could be charged. Should stay 0: look at the model's upstream, "
    "and for a replica that was stopped (its log says which requests were settled late).",
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
LEASED = Described(
    "tollway_credits_leased",
    "gauge",
    "Credits of busy accounts that this process has leased in advance, those it holds for requests "
    "included; 0 with SQLite.",
)
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
    LEASED,
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
_PROCESS_METRICS = (
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
    return _OURS + _PROCESS_METRICS
