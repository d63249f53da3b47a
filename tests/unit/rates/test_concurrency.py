from tollway.rates.concurrency import Concurrency


def test_so_many_at_a_time_and_no_more() -> None:
    concurrency = Concurrency()

    assert [concurrency.enter("a", 2) for _ in range(3)] == [True, True, False]
    assert concurrency.enter("b", 2)
    concurrency.leave("a")
    assert concurrency.enter("a", 2)
    assert not concurrency.enter("a", 2)


def test_an_account_with_nothing_running_is_not_kept() -> None:
    concurrency = Concurrency()
    concurrency.enter("a", 1)
    assert concurrency.running("a") == 1
    concurrency.leave("a")
    assert concurrency.running("a") == 0
    assert not concurrency.enter("a", 0)
    assert concurrency.running("a") == 0
