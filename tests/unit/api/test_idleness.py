"""One timer looks at all connections, and only while there are any."""

import asyncio
from unittest.mock import Mock

from tollway.api.idleness import Idleable, Idleness


class Connection:
    """Gone when it was looked at so often."""

    def __init__(self, connections: set[Idleable], looks: int) -> None:
        self.gone = asyncio.Event()
        self.looked_at: list[float] = []
        self._looks = looks
        self._connections = connections
        connections.add(self)

    def close_if_idle(self, now: float) -> None:
        self.looked_at.append(now)
        if len(self.looked_at) == self._looks:
            self._connections.discard(self)
            self.gone.set()


async def test_each_connection_is_looked_at_until_it_is_gone() -> None:
    loop = asyncio.get_running_loop()
    connections: set[Idleable] = set()
    idleness = Idleness(0.01)
    short, long = Connection(connections, 1), Connection(connections, 3)
    for _ in connections:
        idleness.watch(loop, connections)
    await long.gone.wait()

    assert len(short.looked_at) == 1
    assert len(set(long.looked_at)) == 3, "one timer, however many are watched"
    assert long.looked_at[-1] <= loop.time()


async def test_a_connection_that_comes_after_all_have_gone_is_looked_at_too() -> None:
    loop = asyncio.get_running_loop()
    connections: set[Idleable] = set()
    idleness = Idleness(0.01)
    for _ in range(2):
        one = Connection(connections, 1)
        idleness.watch(loop, connections)
        await one.gone.wait()


async def test_nothing_is_timed_where_there_is_no_connection() -> None:
    loop = Mock(wraps=asyncio.get_running_loop())
    connections: set[Idleable] = set()
    one = Connection(connections, 2)
    Idleness(0.01).watch(loop, connections)
    await one.gone.wait()

    assert loop.call_later.call_count == 2
