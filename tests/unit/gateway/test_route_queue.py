"""No upstream runs more than it may: who waits for a place, who gets it, and who goes elsewhere."""

import pytest
from tests.unit.gateway.desk import Gated, failing, settle_down

from tollway.errors import Unavailable

pytestmark = pytest.mark.usefixtures("no_waiting")


async def test_no_upstream_runs_more_than_it_may() -> None:
    gated = Gated("gpu-1", "gpu-2", limit=2)
    await gated.start(7)
    assert gated.desk.in_flight == [2, 2]
    assert [len(upstream.asks) for upstream in gated.upstreams] == [2, 2]
    gated.open(0, 1)
    assert all(isinstance(result, str) for result in await gated.results())
    assert gated.desk.in_flight == [0, 0]


async def test_who_waits_takes_the_first_place_that_is_free_anywhere() -> None:
    gated = Gated("gpu-1", "gpu-2", limit=1)
    await gated.start(3)
    gated.open(1)
    assert await gated.tasks[2] == "gpu-2"
    gated.open(0)
    assert await gated.results() == ["gpu-1", "gpu-2", "gpu-2"]


async def test_who_comes_later_does_not_overtake() -> None:
    gated = Gated("gpu-1", limit=1)
    await gated.start(3)
    order: list[int] = []
    for index, task in enumerate(gated.tasks):
        task.add_done_callback(lambda _, index=index: order.append(index))
    gated.open(0)
    await gated.results()
    assert order == [0, 1, 2]


async def test_a_full_queue_is_a_503_that_says_when_to_come_back() -> None:
    gated = Gated("gpu-1", limit=1, queue_length=1)
    await gated.start(3)
    refused = await gated.tasks[2]
    assert isinstance(refused, Unavailable)
    assert refused.code == "overloaded"
    assert refused.retry_after_seconds == 5
    assert "1 wait for a place" in refused.message
    gated.open(0)
    assert (await gated.results())[:2] == ["gpu-1", "gpu-1"]


async def test_a_full_queue_leads_to_the_next_priority_and_so_does_no_queue() -> None:
    for queue_length, waiting in ((1, 1), (0, 0)):
        gated = Gated("gpu-1", "spare", priorities=(0, 1), limit=1, queue_length=queue_length)
        await gated.start(2 + waiting)
        assert [len(upstream.asks) for upstream in gated.upstreams] == [1, 1]
        gated.open(0, 1)
        assert (await gated.results())[-1] == "spare"


async def test_who_waited_too_long_goes_to_the_next_priority() -> None:
    gated = Gated("gpu-1", "spare", priorities=(0, 1), limit=1, queue_seconds=0.01)
    await gated.start(2)
    gated.open(1)
    assert await gated.tasks[1] == "spare"
    assert gated.desk.watched["gpu-1"].places.waiting == 0
    gated.open(0)
    assert await gated.results() == ["gpu-1", "spare"]
    assert gated.desk.in_flight == [0, 0]


async def test_who_waited_too_long_and_has_nowhere_to_go_is_told_so() -> None:
    gated = Gated("gpu-1", limit=1, queue_seconds=0.01)
    await gated.start(2)
    refused = await gated.tasks[1]
    assert isinstance(refused, Unavailable)
    assert refused.code == "overloaded"
    gated.open(0)
    await gated.results()


async def test_who_waits_for_one_that_is_not_to_be_asked_any_more_looks_elsewhere() -> None:
    gated = Gated("gpu-1", "spare", priorities=(0, 1), limit=1)
    await gated.start(2)
    gated.upstreams[0].script = [failing(429, rest_seconds=30)]
    gated.open(0, 1)
    assert await gated.results() == ["spare", "spare"]


async def test_a_client_that_leaves_the_queue_leaves_no_place_taken() -> None:
    gated = Gated("gpu-1", limit=1)
    await gated.start(2)
    gated.tasks[1].cancel()
    await settle_down()
    assert gated.desk.watched["gpu-1"].places.waiting == 0
    gated.open(0)
    assert await gated.tasks[0] == "gpu-1"
    assert gated.desk.in_flight == [0]


async def test_a_place_given_in_the_very_moment_of_leaving_is_not_lost() -> None:
    gated = Gated("gpu-1", limit=1)
    await gated.start(2)
    gated.desk.watched["gpu-1"].places.leave()
    gated.tasks[1].cancel()
    await settle_down()
    assert gated.desk.in_flight == [0]
    gated.desk.watched["gpu-1"].places.in_flight += 1
    gated.open(0)
    assert await gated.tasks[0] == "gpu-1"


async def test_a_request_that_failed_elsewhere_waits_for_a_place_too() -> None:
    gated = Gated("gpu-1", "gpu-2", limit=1)
    await gated.start(2)
    gated.upstreams[0].script = [failing(502)]
    gated.open(0)
    await settle_down()
    assert gated.desk.in_flight == [0, 1]
    gated.open(1)
    assert await gated.results() == ["gpu-2", "gpu-2"]
