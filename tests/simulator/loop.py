"""An event loop whose time jumps to the next timer, and which can die between any two steps."""

import asyncio
import inspect
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

START_NOW = 1_795_420_800.0
START_MONOTONIC = 1_000.0
STEP_SECONDS = 1e-6
"""Each step takes some time: who waits for the rest of a second must not wait for ever."""


class VirtualTime:
    """Implements `tollway.clock.Clock`, and what the program uses of the module `time`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.wall_offset = 0.0
        """An operator may set the wall clock; the monotonic one never steps."""

    def now(self) -> float:
        return START_NOW + self.seconds + self.wall_offset

    def monotonic(self) -> float:
        return START_MONOTONIC + self.seconds

    time = now


class KilledError(BaseException):
    """kill -9: nothing of this process runs any more. No `except Exception` may catch it."""


class StuckError(Exception):
    """Nothing can happen any more, and something still waits."""


class Network(Protocol):
    def connect(self, factory: Callable[[], Any], loop: "VirtualLoop") -> "asyncio.Future[Any]": ...


class _Selector:
    """Where a real loop would sleep until a socket stirs, this one moves the time."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise StuckError
        self._time.seconds += max(0.0, timeout)
        return []

    def close(self) -> None: ...


if TYPE_CHECKING:
    _Base = asyncio.SelectorEventLoop
else:
    _Base = asyncio.BaseEventLoop


def _close_unstarted(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Python complains about those that were never awaited."""
    if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        coroutine.close()


class VirtualLoop(_Base):
    """`kill_at_step` None: it is never killed."""

    def __init__(self, time: VirtualTime, network: Network) -> None:
        super().__init__()
        self._selector = _Selector(time)
        self._virtual_time = time
        self._network = network
        self.steps = 0
        self.kill_at_step: int | None = None
        self.faults: list[str] = []
        self.set_exception_handler(self._note_fault)

    def time(self) -> float:
        return self._virtual_time.monotonic()

    async def getaddrinfo(  # type: ignore[override]
        self, host: str, port: int, **_: object
    ) -> list[tuple[Any, ...]]:
        """No thread, whose answer would come at another moment each time."""
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], host: str, port: int, **_: object
    ) -> tuple[Any, Any]:
        return await self._network.connect(protocol_factory, self)

    def drop(self) -> None:
        """After a kill. What was suspended is not resumed, and must not complain about it."""
        self._ready.clear()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        self._scheduled.clear()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]
            coroutine = task.get_coro()
            if inspect.iscoroutine(coroutine):
                _close_unstarted(coroutine)
        self.close()

    def _note_fault(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(f"{context.get('message')}: {context.get('exception')!r}")

    # asyncio's own hooks

    def _run_once(self) -> None:
        self.steps += 1
        self._virtual_time.seconds += STEP_SECONDS
        if self.steps == self.kill_at_step:
            raise KilledError
        super()._run_once()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """What a kill left suspended stays so."""

    def _check_closed(self) -> None:
        """What is collected after a kill may still close things, to no effect."""

    def _process_events(self, event_list: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...
