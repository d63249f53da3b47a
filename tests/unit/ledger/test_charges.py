"""What a charge's rows are made of."""

import pytest

from tollway.ledger.base import Attempt, Hold, Outcome, Recovered, Settlement
from tollway.ledger.charges import Charge, rows_of
from tollway.ledger.rows import milliseconds


@pytest.mark.parametrize("seconds", [0.0, 0.0004, 0.0006, 1.2345, 1763800000.1239])
def test_the_times_of_a_charge_are_milliseconds_as_everywhere(seconds: float) -> None:
    hold = Hold("req_1", "acc_1", "tok_1", "price_1", 10, 90, seconds)
    outcome = Outcome(
        "completed",
        "m",
        1,
        1,
        "upstream",
        1,
        (Attempt("fake", 200),),
        first_token_seconds=seconds,
        total_seconds=seconds,
    )
    charge = Charge(hold, outcome, Settlement(1, 0, 89), seconds, False, False, None)

    usage = rows_of(charge).usage

    assert {usage.created_at, usage.closed_at, usage.first_token_ms, usage.total_ms} == {
        milliseconds(seconds)
    }


def test_what_was_recovered_is_told_as_a_sentence() -> None:
    whole = Recovered("req_1", "acc_1", "journal", 9, 3, charged=1, shortfall=0)
    short = Recovered("req_2", "acc_1", "checkpoint", 9, 30, charged=7, shortfall=2)

    assert f"{whole}" == (
        "the request req_1 of acc_1 was charged 1 credit, for 9 input and 3 output tokens, as the "
        "journal says"
    )
    assert "was charged 7 credits, 2 credits short, for 9 input and 30 output tokens" in f"{short}"
