"""The table "Who pays", row by row, and usage that lies."""

from typing import Any

import pytest
from tests.unit.gateway.parts import NOW, a_meter, a_model, an_admission

from tollway.catalogue import Price
from tollway.gateway.settle import checkpoints_of, outcome_of, usage_of
from tollway.gateway.types import Admission, Meter
from tollway.ledger.base import Attempt
from tollway.pricing import Usage
from tollway.wire.usage import UsageReport, read_usage

PROMPT_BYTES = len("Why did the Tay Bridge fall?")
COUNTED_INPUT = -(-PROMPT_BYTES // 4)
NOTHING = Usage(0, 0, "counted")


def upstream(input_tokens: int, output_tokens: int) -> Usage:
    return Usage(input_tokens, output_tokens, "upstream")


def counted(output_tokens: int) -> Usage:
    return Usage(COUNTED_INPUT, output_tokens, "counted")


def ended(status: str, pieces: int = 0, *, finished: bool = True, **more: Any) -> Meter:
    return a_meter(status=status, output_pieces=pieces, finished=finished, **more)


def said(usage: object, pieces: int) -> dict[str, Any]:
    return {"report": read_usage(usage), "reported_pieces": pieces}


def tokens(input_tokens: object, output_tokens: object) -> dict[str, object]:
    return {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}


STREAMS = {
    "complete, with usage": (ended("completed", 5, **said(tokens(9, 7), 5)), upstream(9, 7)),
    "complete, without usage": (ended("completed", 5), counted(5)),
    "complete and empty, with usage": (
        ended("completed", **said(tokens(9, 0), 0)),
        upstream(9, 0),
    ),
    "complete and empty, without usage": (ended("completed"), counted(0)),
    "an error before the first token": (ended("failed", finished=False), NOTHING),
    "an error before the first token, and a usage": (
        ended("failed", finished=False, **said(tokens(9, 7), 0)),
        NOTHING,
    ),
    "no output, and a blank finish": (
        ended("completed", finished=False, **said(tokens(9, 0), 0)),
        NOTHING,
    ),
    "the upstream dies in the middle": (ended("failed", 5, finished=False), counted(5)),
    "the upstream dies after one token": (ended("failed", 1, finished=False), counted(1)),
    "the upstream dies, running usage": (
        ended("failed", 5, finished=False, **said(tokens(9, 6), 5)),
        upstream(9, 6),
    ),
    "the upstream dies, its usage said before the last output": (
        ended("failed", 50, finished=False, **said(tokens(9, 1), 1)),
        counted(50),
    ),
    "the client leaves, something received": (
        ended("interrupted", 5, finished=False),
        counted(5),
    ),
    "the client leaves, running usage": (
        ended("interrupted", 5, finished=False, **said(tokens(9, 6), 5)),
        upstream(9, 6),
    ),
    "the client leaves, nothing received": (ended("interrupted", finished=False), NOTHING),
    "the client leaves, nothing received and a usage": (
        ended("interrupted", finished=False, **said(tokens(9, 0), 0)),
        NOTHING,
    ),
    "the client leaves at the end of an empty reply": (
        ended("interrupted", **said(tokens(9, 0), 0)),
        NOTHING,
    ),
    # usage that lies
    "zero for output that was received": (
        ended("completed", 5, **said(tokens(9, 0), 5)),
        counted(5),
    ),
    "zero for the prompt": (ended("completed", 5, **said(tokens(0, 5), 5)), counted(5)),
    "zero for both": (ended("completed", 5, **said(tokens(0, 0), 5)), counted(5)),
    "negative": (ended("completed", 5, **said(tokens(9, -5), 5)), counted(5)),
    "text": (ended("completed", 5, **said(tokens("9", "5"), 5)), counted(5)),
    "too large to be": (ended("completed", 5, **said(tokens(9, 2**50), 5)), counted(5)),
    "large": (ended("completed", 5, **said(tokens(9, 10**9), 5)), upstream(9, 10**9)),
}

WHOLE = {
    "complete, with usage": (
        ended("completed", text_bytes=40, report=UsageReport(9, 7)),
        upstream(9, 7),
    ),
    "complete, without usage": (ended("completed", text_bytes=41), counted(11)),
    "zero for output that was received": (
        ended("completed", text_bytes=40, report=UsageReport(9, 0)),
        counted(10),
    ),
    "no output, and a blank finish": (
        ended("completed", finished=False, report=UsageReport(9, 0)),
        NOTHING,
    ),
    "one letter, and a blank finish": (
        ended("completed", text_bytes=1, finished=False, report=UsageReport(9, 1)),
        upstream(9, 1),
    ),
    "complete and empty": (ended("completed", report=UsageReport(9, 0)), upstream(9, 0)),
    "an error": (ended("failed", finished=False), NOTHING),
    "an error after the reply was there": (
        ended("failed", text_bytes=40, report=UsageReport(9, 7)),
        NOTHING,
    ),
    "the client leaves": (ended("interrupted", finished=False), NOTHING),
    "the client leaves a moment too late": (
        ended("interrupted", text_bytes=40, report=UsageReport(9, 7)),
        NOTHING,
    ),
}


@pytest.mark.parametrize(("meter", "usage"), STREAMS.values(), ids=STREAMS.keys())
def test_who_pays_for_a_stream(meter: Meter, usage: Usage) -> None:
    assert usage_of(an_admission(stream=True), meter) == usage


@pytest.mark.parametrize(("meter", "usage"), WHOLE.values(), ids=WHOLE.keys())
def test_who_pays_for_a_whole_reply(meter: Meter, usage: Usage) -> None:
    assert usage_of(an_admission(), meter) == usage


def test_a_prompt_that_was_counted_costs_what_was_counted() -> None:
    admission = an_admission(stream=True, counted=77)
    assert usage_of(admission, ended("completed", 5)) == Usage(77, 5, "counted")


def test_the_cost_is_the_usage_at_the_models_price() -> None:
    meter = ended("completed", 5, **said(tokens(9, 7), 5))
    outcome = outcome_of(an_admission(stream=True), meter, 1002.5)

    assert outcome.cost == 9 + 2 * 7
    assert (outcome.input_tokens, outcome.output_tokens) == (9, 7)


def test_the_cost_is_what_the_upstream_says_even_above_the_hold() -> None:
    """The ledger caps the charge and books the rest as the operator's shortfall."""
    meter = ended("completed", 5, **said(tokens(9, 10**6), 5))
    assert outcome_of(an_admission(stream=True, hold=50), meter, 1001.0).cost == 9 + 2 * 10**6


def test_cached_and_reasoning_tokens_cost_their_own_rates() -> None:
    model = a_model(price=Price("price_1", 1_000_000, 2_000_000, 500_000, 3_000_000))
    parts = {
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    meter = ended("completed", 5, **said(tokens(9, 7) | parts, 5))
    outcome = outcome_of(an_admission(stream=True, model=model), meter, 1002.5)

    assert outcome.cost == 1 + 8 // 2 + 3 * 2 + 4 * 3
    assert (outcome.cached_tokens, outcome.reasoning_tokens) == (8, 4)


@pytest.mark.parametrize(
    ("admission", "meter", "usage"),
    [
        (
            an_admission(stream=True),
            ended("interrupted", 5, reasoning_pieces=3, finished=False),
            Usage(COUNTED_INPUT, 5, "counted", 0, 3),
        ),
        (
            an_admission(),
            ended("completed", text_bytes=41, reasoning_bytes=41),
            Usage(COUNTED_INPUT, 11, "counted", 0, 10),
        ),
    ],
    ids=["a stream", "a whole reply"],
)
def test_reasoning_that_nobody_counted_is_counted_as_such(
    admission: Admission, meter: Meter, usage: Usage
) -> None:
    assert usage_of(admission, meter) == usage


def test_an_outcome_tells_the_receipt_what_happened() -> None:
    attempt = Attempt("gpu-1", 200)
    meter = ended(
        "interrupted",
        5,
        first_output_at=1000.25,
        upstream="gpu-1",
        upstream_id="chatcmpl-x",
        attempts=(attempt,),
    )
    outcome = outcome_of(an_admission(stream=True), meter, 1002.5)

    assert outcome.status == "interrupted"
    assert outcome.source == "counted"
    assert outcome.first_token_seconds == 0.25
    assert outcome.total_seconds == 2.5
    assert outcome.attempts == (attempt,)
    assert (outcome.upstream, outcome.upstream_id) == ("gpu-1", "chatcmpl-x")


# --- checkpoints ------------------------------------------------------------------------------


def running(pieces: int) -> Meter:
    return a_meter(output_pieces=pieces, upstream="gpu-1")


def test_a_stream_that_is_old_enough_has_a_checkpoint_of_what_it_delivered() -> None:
    admission = an_admission(stream=True)
    checkpoints = checkpoints_of([(admission, running(5))], NOW + 2, 2)

    assert [(c.hold, c.input_tokens, c.output_tokens, c.now) for c in checkpoints] == [
        (admission.hold, COUNTED_INPUT, 5, NOW + 2)
    ]


@pytest.mark.parametrize(
    ("fields", "pieces", "age"),
    [({"stream": True}, 5, 1.9), ({"stream": True}, 0, 10), ({}, 5, 10)],
    ids=["young", "nothing delivered", "no stream"],
)
def test_what_owes_nothing_yet_has_no_checkpoint(
    fields: dict[str, Any], pieces: int, age: float
) -> None:
    assert checkpoints_of([(an_admission(**fields), running(pieces))], NOW + age, 2) == []


def test_a_checkpoint_never_says_more_than_was_delivered() -> None:
    meter = a_meter(output_pieces=5, **said(tokens(9, 3), 3))
    (checkpoint,) = checkpoints_of([(an_admission(stream=True), meter)], NOW + 3, 2)
    assert checkpoint.output_tokens == 5


def test_a_checkpoint_says_what_was_cached_and_reasoning() -> None:
    parts = {
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    meter = a_meter(output_pieces=5, **said(tokens(9, 5) | parts, 5))
    (checkpoint,) = checkpoints_of([(an_admission(stream=True), meter)], NOW + 3, 2)
    assert (checkpoint.cached_tokens, checkpoint.reasoning_tokens) == (8, 2)
