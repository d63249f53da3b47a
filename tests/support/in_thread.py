"""A server of a test's own, in a thread with a loop of its own."""

import asyncio
import threading
from abc import ABC, abstractmethod
from typing import Self


class ServerInThread(ABC):
    """Use as a context manager. A subclass says what happens on the loop when it begins and ends;
    what is on the way then is its to end."""

    def __init__(self) -> None:
        self._started = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name=type(self).__name__, daemon=True
        )
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *raised: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @abstractmethod
    async def begin(self) -> None: ...

    @abstractmethod
    async def end(self) -> None: ...

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await self.begin()
        self._started.set()
        await self._stop.wait()
        await self.end()
