import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tollway.database.inbox import Inbox

LONG_SECONDS = 60.0


@pytest.fixture
def inbox() -> Iterator[Inbox[int]]:
    inbox = Inbox[int]()
    inbox.open()
    yield inbox
    inbox.close()


class Waiter:
    """A thread that waits for `items`. `has_returned` says whether it still does."""

    def __init__(self, inbox: Inbox[int], items: int) -> None:
        self._thread = threading.Thread(target=inbox.wait, args=(items, LONG_SECONDS), daemon=True)
        self._thread.start()

    def has_returned(self, within_seconds: float = LONG_SECONDS / 2) -> bool:
        self._thread.join(within_seconds)
        return not self._thread.is_alive()


def test_what_was_put_is_taken_in_order_and_once(inbox: Inbox[int]) -> None:
    for number in range(3):
        inbox.put(number)

    assert len(inbox) == 3
    assert inbox.take_all() == [0, 1, 2]
    assert inbox.take_all() == []


def test_who_waits_is_woken_by_the_item_that_makes_it_enough(inbox: Inbox[int]) -> None:
    waiter = Waiter(inbox, 3)
    inbox.put(1)
    inbox.put(2)
    assert not waiter.has_returned(0.05)

    inbox.put(3)

    assert waiter.has_returned()


def test_where_enough_is_there_nobody_waits(inbox: Inbox[int]) -> None:
    inbox.put(1)
    inbox.put(2)

    assert Waiter(inbox, 2).has_returned()


def test_it_waits_no_longer_than_it_was_told(inbox: Inbox[int]) -> None:
    inbox.put(1)
    began = time.monotonic()

    inbox.wait(2, 0.01)

    assert time.monotonic() - began < LONG_SECONDS / 2
    assert inbox.take_all() == [1]


def test_nothing_is_lost_that_several_threads_put(inbox: Inbox[int]) -> None:
    def put(numbers: range) -> None:
        for number in numbers:
            inbox.put(number)

    taken: list[int] = []
    began = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        putting = [threads.submit(put, range(first, 8000, 4)) for first in range(4)]
        while len(taken) < 8000:
            inbox.wait(1, LONG_SECONDS)
            taken += inbox.take_all()
        for one in putting:
            one.result()

    assert sorted(taken) == list(range(8000))
    assert time.monotonic() - began < LONG_SECONDS / 2, "it was not woken"
