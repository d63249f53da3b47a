"""Closes clients' connections on which nothing has happened for long.

One timer looks at all of them: a timer for each would take 0.5 KB a connection, which is a
twentieth of what an open stream holds (docs/decisions/0009).
"""

import asyncio
from typing import Protocol

LOOK_SECONDS = 1.0
"""How much later than allowed a connection may be closed."""


class Idleable(Protocol):
    def close_if_idle(self, now: float) -> None:
        """`now` by the event loop's clock."""
        ...


class Idleness:
    def __init__(self, look_seconds: float = LOOK_SECONDS) -> None:
        self._look_seconds = look_seconds
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, loop: asyncio.AbstractEventLoop, connections: set[Idleable]) -> None:
        """`connections` is looked at again and again until there are none."""
        if self._timer is None:
            self._timer = loop.call_later(self._look_seconds, self._look, loop, connections)

    def _look(self, loop: asyncio.AbstractEventLoop, connections: set[Idleable]) -> None:
        self._timer = None
        now = loop.time()
        for connection in list(connections):
            connection.close_if_idle(now)
        if connections:
            self.watch(loop, connections)
