from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from prometheus_client.parser import text_string_to_metric_families

from tollway.errors import RateLimit
from tollway.metrics.counters import Metrics
from tollway.metrics.described import described
from tollway.metrics.exposition import Exposition, UpstreamNow
from tollway.metrics.pages import merged_pages


@dataclass(frozen=True)
class AHold:
    amount: int
    held_at: float


def an_exposition(
    metrics: Metrics, holds: Iterable[AHold] = (), now: float = 100.0, fault: str | None = None
) -> Exposition:
    return Exposition(
        metrics,
        version="1.2.3",
        now=lambda: now,
        monotonic=lambda: now,
        in_flight=lambda: 3,
        tasks=lambda: 17,
        open_holds=lambda: holds,
        leased=lambda: 40,
        upstreams=lambda: [
            UpstreamNow("gpu-1", True, "serving", 2, 0, (0.2, 0.05), 0, 0),
            UpstreamNow("gpu-2", False, "set aside", 0, 1, (0.0, 0.0), 4, 1),
        ],
        tries_refused=lambda: [("m", 6)],
        database_fault=lambda: fault,
    )


def samples(exposition: Exposition) -> Mapping[tuple[str, frozenset[str]], float]:
    families = text_string_to_metric_families(exposition.page().decode())
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def full_metrics() -> Metrics:
    metrics = Metrics()
    metrics.request("chat", "m", 200)
    metrics.refused("insufficient_credits")
    metrics.attempted("gpu-1", None, "upstream_timeout")
    metrics.attempted("gpu-2", 401, "unavailable")
    metrics.committed(3, 0.004)
    metrics.of("m").first_token.observe(0.2)
    return metrics


def test_each_metric_that_is_shown_is_described_and_the_other_way_round() -> None:
    page = an_exposition(full_metrics()).page().decode()
    shown = {
        line.split(" ", 3)[2]: line.split(" ", 3)[3]
        for line in page.splitlines()
        if line.startswith("# HELP")
    }
    assert shown == {metric.name: metric.help for metric in described()}


def test_each_metric_has_the_kind_that_is_described() -> None:
    page = an_exposition(full_metrics()).page().decode()
    kinds = dict(line.split(" ")[2:4] for line in page.splitlines() if line.startswith("# TYPE"))
    assert kinds == {metric.name: metric.kind for metric in described()}


def test_what_was_counted_is_shown() -> None:
    metrics = full_metrics()
    metrics.request("chat", "m", 200)
    metrics.attempted("gpu-1", 200, None)
    of_model = metrics.of("m")
    of_model.input_tokens = 7
    of_model.shortfall_credits = 5
    found = samples(an_exposition(metrics))
    assert found["tollway_requests_total", frozenset({"chat", "m", "200"})] == 2
    assert found["tollway_upstream_attempts_total", frozenset({"gpu-1"})] == 2
    failures = frozenset({"gpu-1", "upstream_timeout"})
    assert found["tollway_upstream_failures_total", failures] == 1
    assert found["tollway_input_tokens_total", frozenset({"m"})] == 7
    assert found["tollway_shortfall_credits_total", frozenset({"m"})] == 5
    assert found["tollway_refusals_total", frozenset({"insufficient_credits"})] == 1


def test_what_has_not_happened_yet_is_zero_and_not_missing() -> None:
    found = samples(an_exposition(Metrics()))
    for limit in get_args(RateLimit):
        assert found["tollway_rate_refusals_total", frozenset({limit})] == 0
    assert found["tollway_authentication_failures_total", frozenset()] == 0
    assert found["tollway_access_log_lost_total", frozenset()] == 0


def test_a_histogram_counts_what_is_at_most_its_bound() -> None:
    metrics = Metrics()
    for pieces in (1, 2, 3, 1000):
        metrics.committed(pieces, 0.001)
    found = samples(an_exposition(metrics))
    bucket = "tollway_commit_batch_size_bucket"
    assert found[bucket, frozenset({"1.0"})] == 1
    assert found[bucket, frozenset({"2.0"})] == 2
    assert found[bucket, frozenset({"4.0"})] == 3
    assert found[bucket, frozenset({"512.0"})] == 3
    assert found[bucket, frozenset({"+Inf"})] == 4
    assert found["tollway_commit_batch_size_count", frozenset()] == 4
    assert found["tollway_commit_batch_size_sum", frozenset()] == 1006


def test_the_moment_of_the_scrape_is_shown() -> None:
    found = samples(an_exposition(Metrics(), [AHold(5, 90.0), AHold(7, 60.0)]))
    assert found["tollway_requests_in_flight", frozenset()] == 3
    assert found["tollway_tasks", frozenset()] == 17
    assert found["tollway_credits_held", frozenset()] == 12
    assert found["tollway_credits_leased", frozenset()] == 40
    assert found["tollway_holds_open", frozenset()] == 2
    assert found["tollway_hold_oldest_age_seconds", frozenset()] == 40
    assert found["tollway_upstream_ready", frozenset({"gpu-1"})] == 1
    assert found["tollway_upstream_ready", frozenset({"gpu-2"})] == 0
    assert found["tollway_build_info", frozenset({"1.2.3"})] == 1


def test_a_clock_set_back_makes_no_hold_of_the_future() -> None:
    found = samples(an_exposition(Metrics(), [AHold(5, 90.0)], now=10.0))
    assert found["tollway_hold_oldest_age_seconds", frozenset()] == 0


def test_open_holds_are_shown_by_their_age() -> None:
    ages = (5, 11, 59, 61, 1000)
    found = samples(an_exposition(Metrics(), [AHold(1, 2000.0 - age) for age in ages], 2000.0))
    older = {
        seconds: found["tollway_holds_open_by_age", frozenset({seconds})]
        for seconds in ("10", "60", "300", "900")
    }
    assert older == {"10": 4, "60": 2, "300": 1, "900": 1}


def test_a_fault_of_the_database_is_shown_while_it_lasts() -> None:
    for fault, shown in ((None, 0), ("disk full", 1)):
        found = samples(an_exposition(Metrics(), fault=fault))
        assert found["tollway_database_fault", frozenset()] == shown


def test_the_credits_of_the_last_minute_are_of_all_and_of_the_busiest_account() -> None:
    metrics = Metrics()
    metrics.velocity.charged("acc_1", 5, 30.0)
    metrics.velocity.charged("acc_1", 7, 70.5)
    metrics.velocity.charged("acc_2", 9, 70.9)

    def last_minute(now: float) -> tuple[float, float]:
        found = samples(an_exposition(metrics, now=now))
        name = "tollway_credits_charged_last_minute"
        return found[name, frozenset({"all"})], found[name, frozenset({"busiest_account"})]

    assert last_minute(90.0) == (21, 12)
    assert last_minute(91.0) == (16, 9)
    assert last_minute(131.0) == (0, 0)


def test_the_pages_of_several_workers_are_one_page_that_names_them() -> None:
    one, two = full_metrics(), full_metrics()
    two.request("chat", "m", 200)
    pages = {
        "0": an_exposition(one).page().decode(),
        "1": an_exposition(two).page().decode(),
    }

    page = merged_pages("worker", pages)

    found = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    asked = {"kind": "chat", "model": "m", "status": "200"}
    for worker, count in (("0", 1), ("1", 2)):
        labels = frozenset({**asked, "worker": worker}.items())
        assert found["tollway_requests_total", labels] == count
        alone = frozenset({"worker": worker}.items())
        assert found["tollway_requests_in_flight", alone] == 3
    heads = [line for line in page.splitlines() if line.startswith("#")]
    assert heads == [line for line in pages["0"].splitlines() if line.startswith("#")]
