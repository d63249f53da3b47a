"""The bounded queue in front of the child: it would take any number of requests and keep them all
waiting.

A slot is taken while the child may be working for a request. That is longer than somebody waits for
the answer: a hang-up during the reading of the prompt is not noticed before the prompt is read (12
s for 1,500 tokens here). So the slots of a request that ended badly linger until the child says
that fewer slots are busy than are taken, or a bound has passed.

Who asks for several slots gets them together or waits; nobody overtakes, so nobody starves.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from tollway.errors import Unavailable

RETRY_AFTER_SECONDS = 5.0


class Slots:
    """`busy_in_child` tells how many slots the child works in; None when it is not there to work at
    all."""

    def __init__(
        self,
        count: int,
        queue_length: int,
        busy_in_child: Callable[[], Awaitable[int | None]],
        *,
        wait_seconds: float = 30.0,
        linger_seconds: float = 30.0,
        poll_seconds: float = 0.1,
    ) -> None:
        self._count = count
        self._queue_length = queue_length
        self._busy_in_child = busy_in_child
        self._wait_seconds = wait_seconds
        self._linger_seconds = linger_seconds
        self._poll_seconds = poll_seconds
        self._free = count
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._lingering: deque[float] = deque()  # until when, one for each slot
        self._watch: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def take(self, wanted: int) -> AsyncGenerator[int]:
        """Holds as many slots as are wanted, at most all. Raises `Unavailable` when the queue is
        full or too slow."""
        width = min(wanted, self._count)
        await self._wait_for(width)
        try:
            yield width
        except BaseException:
            self._linger(width)
            raise
        self._give_back(width)

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _wait_for(self, width: int) -> None:
        if not self._waiting and self._free >= width:
            self._free -= width
            return
        if len(self._waiting) >= self._queue_length:
            raise self._overloaded(f"{len(self._waiting)} requests wait for it already")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((width, turn))
        try:
            async with asyncio.timeout(self._wait_seconds):
                await turn
        except BaseException as error:
            self._leave_queue(width, turn)
            if isinstance(error, TimeoutError):
                raise self._overloaded(
                    f"no place became free within {self._wait_seconds:g} s"
                ) from None
            raise

    def _leave_queue(self, width: int, turn: asyncio.Future[None]) -> None:
        if (
            turn.done() and not turn.cancelled()
        ):  # the slots were given in the very moment of giving up
            self._give_back(width)
            return
        self._waiting = deque(waiter for waiter in self._waiting if waiter[1] is not turn)
        self._hand_out()

    def _give_back(self, width: int) -> None:
        self._free += width
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            width, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= width
                turn.set_result(None)

    def _linger(self, width: int) -> None:
        until = asyncio.get_running_loop().time() + self._linger_seconds
        self._lingering.extend([until] * width)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_lingering())

    async def _watch_lingering(self) -> None:
        while self._lingering:
            await asyncio.sleep(self._poll_seconds)
            busy = await self._busy_in_child()
            taken = self._count - self._free
            self._release(taken if busy is None else taken - busy)
            now = asyncio.get_running_loop().time()
            self._release(sum(1 for until in self._lingering if until <= now))

    def _release(self, idle: int) -> None:
        width = min(max(0, idle), len(self._lingering))
        for _ in range(width):
            self._lingering.popleft()
        self._give_back(width)

    def _overloaded(self, why: str) -> Unavailable:
        return Unavailable(
            f"The embedded model is busy: {why}. Try again in {RETRY_AFTER_SECONDS:g} s.",
            code="overloaded",
            retry_after_seconds=RETRY_AFTER_SECONDS,
            was_sent=False,
        )
