import asyncio

import pytest

from tollway.errors import Unavailable
from tollway.upstreams.embedded.slots import Slots


class Child:
    """Says how many slots it works in; `asked` tells that it was asked."""

    def __init__(self, busy: int | None = 0) -> None:
        self.busy = busy
        self.asked = asyncio.Event()

    async def busy_slots(self) -> int | None:
        self.asked.set()
        return self.busy


class Holder:
    """Takes slots, and holds them until told to end."""

    def __init__(self, slots: Slots, wanted: int = 1) -> None:
        self.width = 0
        self.end = asyncio.Event()
        self.has_it = asyncio.Event()
        self.task = asyncio.create_task(self._hold(slots, wanted))

    async def _hold(self, slots: Slots, wanted: int) -> None:
        async with slots.take(wanted) as self.width:
            self.has_it.set()
            await self.end.wait()

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def some_slots(count: int = 2, child: Child | None = None, **options: float) -> Slots:
    return Slots(count, 2, (child or Child()).busy_slots, poll_seconds=0, **options)


async def settle() -> None:
    """Lets every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def are_free(slots: Slots, wanted: int) -> bool:
    """Who asks for them does not wait."""
    asking = Holder(slots, wanted)
    await settle()
    asking.end.set()
    await settle()
    await asking.leave()
    return asking.has_it.is_set()


async def test_a_waiter_gets_the_slot_that_is_given_back() -> None:
    slots = some_slots(1)
    first, second = Holder(slots), Holder(slots)
    await settle()
    assert not second.has_it.is_set()

    first.end.set()
    await second.has_it.wait()

    second.end.set()
    await second.task
    assert await are_free(slots, 1)


async def test_nobody_overtakes_who_waits_for_more() -> None:
    slots = some_slots(2)
    first = Holder(slots)
    await settle()
    both, one = Holder(slots, 2), Holder(slots, 1)
    await settle()
    assert not one.has_it.is_set()

    first.end.set()
    await both.has_it.wait()
    assert not one.has_it.is_set()

    both.end.set()
    await one.has_it.wait()
    one.end.set()
    await one.task


async def test_nobody_gets_more_than_all() -> None:
    holder = Holder(some_slots(2), 4)
    await holder.has_it.wait()
    assert holder.width == 2
    await holder.leave()


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    slots = some_slots(1)
    holders = [Holder(slots) for _ in range(3)]
    await settle()

    with pytest.raises(Unavailable, match="2 requests wait") as refusal:
        await slots.take(1).__aenter__()

    assert refusal.value.code == "overloaded"
    assert refusal.value.retry_after_seconds
    assert not refusal.value.was_sent
    for holder in holders:
        await holder.leave()


async def test_a_wait_that_is_too_long_is_given_up() -> None:
    slots = some_slots(1, wait_seconds=0)
    holder = Holder(slots)
    await holder.has_it.wait()

    with pytest.raises(Unavailable, match="no place became free within 0 s"):
        await slots.take(1).__aenter__()

    holder.end.set()
    await holder.task
    assert await are_free(slots, 1)


async def test_who_leaves_the_queue_takes_nothing() -> None:
    slots = some_slots(1)
    first, second, third = (Holder(slots) for _ in range(3))
    await settle()

    await second.leave()
    first.end.set()
    await third.has_it.wait()

    third.end.set()
    await third.task
    assert await are_free(slots, 1)


async def test_a_slot_given_in_the_moment_of_leaving_is_given_back() -> None:
    slots = some_slots(1)
    first, second = Holder(slots), Holder(slots)
    await settle()

    first.end.set()
    await first.task
    await second.leave()

    async with asyncio.timeout(1), slots.take(1):
        pass


async def test_a_slot_stays_taken_until_the_child_is_done_with_it() -> None:
    child = Child(busy=1)
    slots = some_slots(2, child)
    holder = Holder(slots)
    await holder.has_it.wait()

    await holder.leave()
    await child.asked.wait()
    await settle()
    assert not await are_free(slots, 2)

    child.busy = 0
    await Holder(slots, 2).has_it.wait()
    await slots.stop()


async def test_slots_in_use_are_not_taken_for_lingering_ones() -> None:
    child = Child(busy=2)
    slots = some_slots(2, child)
    stays, leaves = Holder(slots), Holder(slots)
    await settle()
    await leaves.leave()
    await child.asked.wait()
    assert not await are_free(slots, 1)

    child.busy = 1
    comes = Holder(slots)
    await comes.has_it.wait()

    assert not stays.task.done()
    await comes.leave()
    await stays.leave()
    await slots.stop()


async def test_a_child_that_is_gone_works_for_nobody() -> None:
    slots = some_slots(1, Child(busy=None))
    holder = Holder(slots)
    await holder.has_it.wait()

    await holder.leave()

    await Holder(slots).has_it.wait()
    await slots.stop()


async def test_a_child_that_never_says_so_does_not_keep_a_slot_for_ever() -> None:
    slots = some_slots(1, Child(busy=1), linger_seconds=0)
    holder = Holder(slots)
    await holder.has_it.wait()

    await holder.leave()

    await Holder(slots).has_it.wait()
    await slots.stop()
