"""How many requests an upstream runs, the most it may run at a time, and who waits for a place.

A place that is given back goes to the one who has waited longest, not to who comes next: nobody
overtakes. A request may wait for a place at several upstreams at once and takes the first.

Nothing is awaited here: who waits has a future, and its `asyncio.timeout`.
"""

import asyncio
import sys
from collections import deque

QUEUE_LENGTH = 32
QUEUE_SECONDS = 10.0
UNLIMITED = sys.maxsize


class Places:
    __slots__ = ("_waiting", "in_flight", "limit", "queue_length", "queue_seconds")

    def __init__(
        self,
        limit: int | None = None,
        queue_length: int = QUEUE_LENGTH,
        queue_seconds: float = QUEUE_SECONDS,
    ) -> None:
        self.in_flight = 0
        self.limit = UNLIMITED if limit is None else limit
        self.queue_length = queue_length
        self.queue_seconds = queue_seconds
        self._waiting: deque[asyncio.Future[Places | None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def queue(self, turn: "asyncio.Future[Places | None]") -> bool:
        """`turn` gets these places once it has one of them, taken for it already, or None where
        there is nothing to wait for any more. False where the queue is full."""
        if len(self._waiting) >= self.queue_length:
            return False
        self._waiting.append(turn)
        return True

    def unqueue(self, turn: "asyncio.Future[Places | None]") -> None:
        """Does nothing where it is not there any more."""
        if turn in self._waiting:
            self._waiting.remove(turn)

    def leave(self) -> None:
        self.in_flight -= 1
        if self._waiting:
            self._hand_over()

    def turn_away(self) -> None:
        """The upstream is not to be asked: those who wait for it look elsewhere."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    def _hand_over(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(self)
