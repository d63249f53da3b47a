"""What a customer pays is what the customer received: the charge against what the upstream truly
sent, by its own record, whatever it says about it."""

from typing import Any

import pytest
from tests.support.answers import Answer, cut, reply, stream, usage
from tests.support.builders import message
from tests.support.customer import Customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import Reply

HELLO = [message("Hello!")]
COUNTED_INPUT = 2  # ceil(6 bytes / 4), where no tokenizer can be asked
WORDS = ["one", " two", " three", " four", " five", " six"]
LIES: dict[str, object] = {
    "none": None,
    "zero": usage(0, 0),
    "negative": usage(-9, -9),
    "text": {"prompt_tokens": "9", "completion_tokens": "9", "total_tokens": "18"},
    "fractions": {"prompt_tokens": 1.5, "completion_tokens": 2.5},
    "truths": {"prompt_tokens": True, "completion_tokens": True},
    "absurd": usage(10**15, 10**15),
    "a list": [[]],
    "half": {"completion_tokens": 3},
}

OF_UPSTREAM = {"source": "upstream", "cached_tokens": 0, "reasoning_tokens": 0}


def of(customer: Customer, answered: Reply) -> dict[str, Any]:
    receipt = customer.receipt_of(answered)
    rates, used, paid = receipt["rates"], receipt["usage"], receipt["credits"]
    exact = (
        used["prompt_tokens"] * rates["prompt"] + used["completion_tokens"] * rates["completion"]
    )
    assert paid["consumed"] + paid["shortfall"] == -(-exact // 1_000_000)
    assert 0 <= paid["consumed"] <= paid["reserved"]
    assert customer.balance == customer.available == 100_000 - paid["consumed"]
    return receipt


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
def test_a_truthful_upstream_is_believed(
    upstream: FakeUpstream, customer: Customer, streamed: bool
) -> None:
    answered = customer.chat(messages=HELLO, max_tokens=8, stream=streamed)

    receipt = of(customer, answered)
    sent = upstream.ended()
    (told,) = sent.usages_sent
    assert receipt["usage"]["source"] == "upstream"
    assert receipt["usage"]["completion_tokens"] == sent.content_tokens_sent == 8
    assert told == usage(1, 8)
    assert receipt["usage"] == {**usage(1, 8), **OF_UPSTREAM}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_stream_whose_usage_cannot_be_true_is_counted(
    upstream: FakeUpstream, customer: Customer, lie: object
) -> None:
    upstream.answer(stream(WORDS, usage=lie))

    answered = customer.chat(messages=HELLO, max_tokens=50, stream=True)

    receipt = of(customer, answered)
    assert receipt["usage"]["source"] == "counted"
    assert receipt["usage"]["prompt_tokens"] == COUNTED_INPUT
    assert receipt["usage"]["completion_tokens"] == upstream.ended().content_tokens_sent == 6
    assert receipt["credits"]["consumed"] == COUNTED_INPUT + 12


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_reply_whose_usage_cannot_be_true_is_counted(
    upstream: FakeUpstream, customer: Customer, lie: object
) -> None:
    upstream.answer(reply("x" * 41, usage=lie))

    receipt = of(customer, customer.chat(messages=HELLO, max_tokens=50))

    assert receipt["usage"]["source"] == "counted"
    assert receipt["usage"]["prompt_tokens"] == COUNTED_INPUT
    assert receipt["usage"]["completion_tokens"] == 11


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
def test_more_than_the_hold_is_the_operators_loss(
    upstream: FakeUpstream, customer: Customer, streamed: bool
) -> None:
    told = usage(9, 5000)
    upstream.answer(stream(WORDS, usage=told) if streamed else reply("a b", usage=told))

    receipt = of(customer, customer.chat(messages=HELLO, max_tokens=50, stream=streamed))

    reserved = receipt["credits"]["reserved"]
    assert receipt["credits"]["consumed"] == reserved
    assert receipt["credits"]["shortfall"] == 9 + 2 * 5000 - reserved


def test_the_last_of_several_usages_counts_and_only_once(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(WORDS, usage=[usage(9, 6), usage(9, 6)]))

    receipt = of(customer, customer.chat(messages=HELLO, max_tokens=50, stream=True))

    assert receipt["credits"]["consumed"] == 21


def test_a_stream_that_ignores_its_cap_is_cut_at_it(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["x"] * 200, pace_seconds=0.001, usage=None))

    answered = customer.chat(messages=HELLO, max_tokens=20, stream=True)

    received = [
        event
        for event in answered.events
        if event.data not in (None, "[DONE]") and '"content":"x"' in (event.data or "")
    ]
    assert len(received) == 20
    finish = answered.events[-3].json()["choices"][0]
    assert finish["finish_reason"] == "length"
    assert answered.events[-1].data == "[DONE]"
    assert of(customer, answered)["usage"]["completion_tokens"] == 20


def test_a_stream_that_never_ends_is_left(upstream: FakeUpstream, customer: Customer) -> None:
    upstream.answer(stream(iter(lambda: "x", None), pace_seconds=0.001))  # pyright: ignore[reportArgumentType]

    customer.chat(messages=HELLO, max_tokens=20, stream=True)

    assert upstream.ended(seconds=1.0).ended == "peer left"


@pytest.mark.parametrize(
    "answer",
    [
        stream([], finish_reason=None, usage=usage(9, 0)),
        stream([], finish_reason="abort", usage=usage(9, 0)),
    ],
    ids=["blank", "abort"],
)
def test_no_output_with_a_blank_or_an_error_finish_costs_nothing(
    upstream: FakeUpstream, customer: Customer, answer: Answer
) -> None:
    upstream.answer(answer)

    receipt = of(customer, customer.chat(messages=HELLO, stream=True, max_tokens=50))

    assert receipt["status"] == "failed"
    assert receipt["credits"]["consumed"] == 0


def test_no_output_with_a_good_finish_costs_its_usage(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream([], usage=usage(9, 0)))

    receipt = of(customer, customer.chat(messages=HELLO, stream=True, max_tokens=50))

    assert receipt["status"] == "completed"
    assert receipt["credits"]["consumed"] == 9


@pytest.mark.parametrize("chunks", range(5))
def test_a_stream_that_is_cut_costs_what_was_received(
    upstream: FakeUpstream, customer: Customer, chunks: int
) -> None:
    upstream.answer(stream([*WORDS[:chunks], cut()]))

    receipt = of(customer, customer.chat(messages=HELLO, max_tokens=50, stream=True))

    assert receipt["status"] == "failed"
    assert receipt["usage"]["completion_tokens"] == upstream.ended().content_tokens_sent == chunks
    assert receipt["credits"]["consumed"] == (COUNTED_INPUT + 2 * chunks if chunks else 0)


@pytest.mark.parametrize("byte", range(0, 3000, 97))
def test_cut_at_any_byte_a_stream_costs_the_events_that_were_whole(
    upstream: FakeUpstream, customer: Customer, byte: int
) -> None:
    upstream.answer(stream(WORDS, usage=None).cut_at(byte))

    answered = customer.chat(messages=HELLO, max_tokens=50, stream=True)

    sent = upstream.ended()
    receipt = of(customer, answered)
    assert receipt["usage"]["completion_tokens"] == sent.content_tokens_sent
    assert (receipt["status"] == "completed") == sent.finish_sent


def test_running_usage_is_the_number_where_a_stream_breaks(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream([*WORDS[:3], cut()], input_tokens=9, running_usage=True))

    receipt = of(customer, customer.chat(messages=HELLO, max_tokens=50, stream=True))

    assert receipt["usage"] == {**usage(9, 3), **OF_UPSTREAM}


def test_several_choices_are_charged_together_and_the_prompt_once(
    upstream: FakeUpstream, customer: Customer
) -> None:
    answered = customer.chat(messages=HELLO, max_tokens=5, n=3, stream=True)

    receipt = of(customer, answered)
    assert upstream.ended().content_tokens_sent == 15
    assert receipt["usage"]["completion_tokens"] == 15
    assert receipt["usage"]["prompt_tokens"] == 1


def test_no_hold_is_left_open(customer: Customer) -> None:
    metrics = customer.over("").get("/metrics").body.decode()

    assert "tollway_holds_open 0.0" in metrics
    assert "tollway_credits_held 0.0" in metrics
    assert "tollway_requests_in_flight 0.0" in metrics
