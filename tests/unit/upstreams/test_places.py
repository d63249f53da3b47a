"""Places at an upstream: who waits longest is next, and a place is never lost or given twice."""

import asyncio

from tollway.upstreams.places import Places


def a_turn() -> asyncio.Future[Places | None]:
    return asyncio.get_running_loop().create_future()


def full(limit: int = 1, queue_length: int = 2) -> Places:
    places = Places(limit, queue_length)
    places.in_flight = limit
    return places


async def test_a_place_goes_to_who_has_waited_longest() -> None:
    places = full()
    first, second = a_turn(), a_turn()
    assert places.queue(first)
    assert places.queue(second)

    places.leave()

    assert first.result() is places
    assert not second.done()
    assert (places.in_flight, places.waiting) == (1, 1)


async def test_the_queue_is_bounded() -> None:
    places = full(queue_length=1)
    assert places.queue(a_turn())
    assert not places.queue(a_turn())


async def test_without_a_queue_nobody_waits() -> None:
    assert not full(queue_length=0).queue(a_turn())


async def test_who_gave_up_is_passed_over() -> None:
    places = full()
    gone, here = a_turn(), a_turn()
    places.queue(gone)
    places.queue(here)
    gone.cancel()
    places.leave()
    assert here.result() is places
    assert places.in_flight == 1


async def test_nobody_waiting_leaves_the_place_free() -> None:
    places = full()
    places.leave()
    assert places.in_flight == 0


async def test_one_who_waits_at_two_takes_one_place() -> None:
    here, there = full(), full()
    turn = a_turn()
    here.queue(turn)
    there.queue(turn)
    here.leave()
    there.leave()
    assert turn.result() is here
    assert (here.in_flight, there.in_flight) == (1, 0)


async def test_who_leaves_the_queue_is_out_of_it() -> None:
    places = full()
    turn = a_turn()
    places.queue(turn)
    places.unqueue(turn)
    places.unqueue(turn)
    assert places.waiting == 0


async def test_those_who_are_turned_away_look_elsewhere() -> None:
    places = full()
    turns = [a_turn(), a_turn()]
    for turn in turns:
        places.queue(turn)
    places.turn_away()
    assert [turn.result() for turn in turns] == [None, None]
    assert (places.in_flight, places.waiting) == (1, 0)
