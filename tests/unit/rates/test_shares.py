from hypothesis import given
from hypothesis import strategies as st

from tollway.rates.shares import Shares

NAMES = ["a7", "c1", "f9", "k3", "z0"]


@given(st.integers(0, 1000), st.integers(1, 5), st.text())
def test_the_shares_of_all_replicas_are_the_limit(limit: int, replicas: int, key: str) -> None:
    live = NAMES[:replicas]
    total = 0
    for name in live:
        shares = Shares(name, 15.0)
        shares.know(live, 100.0)
        share = shares.of(limit, key)
        assert limit // replicas <= share <= limit // replicas + 1
        total += share
    assert total == limit


def test_a_replica_that_knows_of_no_other_has_the_whole_limit() -> None:
    assert Shares("a7", 15.0).of(30, "chat:acc_1") == 30


def test_a_replica_counts_itself_whether_it_is_named_or_not() -> None:
    shares = Shares("a7", 15.0)
    shares.know(["c1", "f9"], 100.0)
    assert shares.replicas == 3


def test_what_is_left_over_goes_to_others_for_each_key() -> None:
    shares = Shares("a7", 15.0)
    shares.know(NAMES, 100.0)
    assert {shares.of(1, f"key {number}") for number in range(50)} == {0, 1}


def test_a_replica_is_known_for_a_while_after_it_was_last_heard_of() -> None:
    shares = Shares("a7", 15.0)
    shares.know(["c1", "f9"], 100.0)
    shares.know(["c1"], 114.9)
    assert shares.replicas == 3
    shares.know(["c1"], 115.0)
    assert shares.replicas == 2


def test_after_a_time_in_which_nothing_was_heard_all_are_known_still() -> None:
    shares = Shares("a7", 15.0)
    shares.know(["c1", "f9"], 100.0)
    shares.know_again(500.0)
    shares.know([], 501.0)
    assert shares.replicas == 3
