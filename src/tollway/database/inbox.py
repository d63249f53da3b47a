"""A queue for one thread that takes all there is at once."""

import contextlib
import select
import socket
import sys
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

_NEVER = sys.maxsize


class Inbox(Generic[T]):
    """`put` wakes the thread only if it waits, and only when as much is there as it waits for:
    0.1 us, where `queue.SimpleQueue` posts a semaphore each time, which costs 3 us, and 10 where
    the thread then competes for the interpreter lock. It wakes it by a byte in a socket, since
    sending gives the interpreter lock away: who is woken finds it free. Waking by a lock, both took
    turns six times until it was.

    Several threads may put, each under the interpreter lock. A wake that comes late or twice makes
    `wait` return early, no more.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._wanted = _NEVER
        self._sockets: tuple[socket.socket, ...] = ()

    def open(self) -> None:
        """Before anybody waits."""
        self._sockets = self._waking, self._woken = socket.socketpair()
        for one in self._sockets:
            one.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._woken, select.POLLIN)

    def close(self) -> None:
        """When nobody waits any more."""
        for one in self._sockets:
            one.close()

    def put(self, item: T) -> None:
        self._items.append(item)
        if len(self._items) >= self._wanted:
            self._wanted = _NEVER
            with contextlib.suppress(OSError):  # so full that it wakes anyway, or closed by a stop
                self._waking.send(b"\0")

    def __len__(self) -> int:
        return len(self._items)

    def wait(self, items: int, seconds: float) -> None:
        """Returns when so many are there, or after `seconds` (negative: never), which are rounded
        up to whole milliseconds; now and then earlier."""
        milliseconds = None if seconds < 0 else seconds * 1000
        self._wanted = items
        # Looked at after `_wanted` was set: a `put` before that has left its item here.
        if len(self._items) < items and self._poll.poll(milliseconds):
            self._woken.recv(64)
        self._wanted = _NEVER

    def take_all(self) -> list[T]:
        items = self._items
        return [items.popleft() for _ in range(len(items))]
