import pytest

from tollway.wire.usage import TOKENS_BELIEVED_MAX, UsageReport, read_usage, with_reasoning_apart


def usage(input_tokens: object, output_tokens: object, **more: object) -> dict[str, object]:
    return {"prompt_tokens": input_tokens, "completion_tokens": output_tokens, **more}


def test_a_sound_usage_is_read() -> None:
    assert read_usage(usage(7, 3, total_tokens=10)) == UsageReport(7, 3)
    vllms = usage(7, 3, total_tokens=10, prompt_tokens_details=None)
    assert read_usage(vllms) == UsageReport(7, 3)


def test_zero_is_a_number() -> None:
    assert read_usage(usage(0, 0)) == UsageReport(0, 0)


def test_no_output_yet_is_none() -> None:
    assert read_usage(usage(7, None)) == UsageReport(7, 0)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "10",
        [],
        {},
        {"completion_tokens": 3},
        usage(None, 3),
        usage(-1, 3),
        usage(7, -3),
        usage("7", 3),
        usage(7, "3"),
        usage(7.0, 3),
        usage(True, 3),
        usage(7, False),
        usage(TOKENS_BELIEVED_MAX + 1, 3),
        usage(7, 10**30),
    ],
)
def test_what_cannot_be_true_is_not_believed(value: object) -> None:
    assert read_usage(value) is None


def test_details_pass_as_far_as_they_are_numbers() -> None:
    report = read_usage(
        usage(
            7,
            3,
            prompt_tokens_details={"cached_tokens": 4, "audio_tokens": None, "x": {"y": 1}},
            completion_tokens_details="none",
        )
    )
    assert report is not None
    assert report.input_details == {"cached_tokens": 4, "audio_tokens": None}
    assert report.output_details is None


@pytest.mark.parametrize(
    "said",
    [
        {"prompt_tokens_details": {"cached_tokens": 4}},
        {"prompt_tokens_details": None, "prompt_cache_hit_tokens": 4},
        {"cached_tokens": 4},
        {"prompt_tokens_details": {"cached_tokens": 4}, "prompt_cache_hit_tokens": 4},
    ],
)
def test_cached_tokens_are_read_wherever_servers_say_them(said: dict[str, object]) -> None:
    report = read_usage(usage(7, 3, **said))
    assert report is not None
    assert report.cached_tokens == 4
    assert report.input_details == {"cached_tokens": 4}


@pytest.mark.parametrize(
    "said", [{"completion_tokens_details": {"reasoning_tokens": 2}}, {"reasoning_tokens": 2}]
)
def test_reasoning_tokens_are_read_wherever_servers_say_them(said: dict[str, object]) -> None:
    report = read_usage(usage(7, 3, **said))
    assert report is not None
    assert report.reasoning_tokens == 2
    assert report.output_details == {"reasoning_tokens": 2}


def test_a_part_is_never_more_than_its_whole_and_the_client_is_told_the_same() -> None:
    lie = usage(
        7,
        3,
        prompt_tokens_details={"cached_tokens": 8},
        completion_tokens_details={"reasoning_tokens": 10**9},
    )
    assert read_usage(lie) == UsageReport(7, 3, 7, 3, {"cached_tokens": 7}, {"reasoning_tokens": 3})


@pytest.mark.parametrize("count", [-1, "4", True, 4.0, None, 2**50])
def test_a_part_that_is_no_count_is_none(count: object) -> None:
    lie = usage(
        7,
        3,
        cached_tokens=count,
        reasoning_tokens=count,
        prompt_tokens_details={"cached_tokens": count},
        completion_tokens_details={"reasoning_tokens": count},
    )
    report = read_usage(lie)
    assert report is not None
    assert (report.cached_tokens, report.reasoning_tokens) == (0, 0)


@pytest.mark.parametrize(("answered", "output_tokens"), [(3, 8), (None, 5), (0, 5)])
def test_reasoning_that_only_the_total_counts_is_output(
    answered: int | None, output_tokens: int
) -> None:
    said = usage(7, answered, total_tokens=12 + (answered or 0))
    report = read_usage(with_reasoning_apart(said))
    assert report == UsageReport(7, output_tokens, 0, 5, None, {"reasoning_tokens": 5})


@pytest.mark.parametrize(
    "said",
    [
        None,
        "10",
        usage(7, 3),
        usage(7, 3, total_tokens=10),
        usage(7, 3, total_tokens=9),
        usage(7, 3, total_tokens="15"),
        usage(7, 3, total_tokens=TOKENS_BELIEVED_MAX + 1),
        usage("7", 3, total_tokens=15),
        usage(7, -3, total_tokens=15),
        usage(-7, 3, total_tokens=15),
    ],
)
def test_a_total_that_says_no_more_or_cannot_be_true_changes_nothing(said: object) -> None:
    assert with_reasoning_apart(said) is said
