"""Sockets as two byte queues. Each read brings as much, after as long, as the schedule's dice say.

What a peer has not read stays in the writer's buffer, which counts as full at `FULL_BYTES`: a small
number, so that a short schedule meets a client that does not read.
"""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

PEER, OURS = ("198.51.100.7", 40000), ("127.0.0.1", 8080)
FULL_BYTES = 2048
LATENCIES = (0.0, 0.0, 0.0005, 0.004, 0.03)


class _Socket:
    """Its buffers are the transport's, and as large as a schedule wants them."""

    def setsockopt(self, level: int, option: int, value: int) -> None: ...

    def getpeername(self) -> tuple[str, int]:
        return PEER

    def getsockname(self) -> tuple[str, int]:
        return OURS


class Transport(asyncio.Transport):
    """One end. `written` is all that was ever written to it while it was open, with the times."""

    def __init__(self, loop: asyncio.AbstractEventLoop, random: Random) -> None:
        super().__init__({"peername": PEER, "sockname": OURS, "socket": _Socket()})
        self._loop = loop
        self._random = random
        self._out = bytearray()
        self._due = False
        self._closing = False
        self._lost = False
        self._told = False
        self._paused = False
        self._full = False
        self.peer: Transport | None = None
        self.protocol: Any = None
        self.written = bytearray()
        self.written_at: list[tuple[float, int]] = []
        self.delivered = 0
        self.lost_at: float | None = None

    # --- writing ---

    def write(self, data: Any) -> None:
        if self._closing or self._told:
            return
        # In the moment between a loss and the news of it, a program writes in good faith.
        self.written += data
        self.written_at.append((self._loop.time(), len(self.written)))
        if self._lost:
            return
        self._out += data
        self._schedule()
        if len(self._out) > FULL_BYTES and not self._full:
            self._full = True
            self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self._out)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def close(self) -> None:
        """What was written still arrives."""
        if self._closing or self._lost:
            return
        self._closing = True
        self._schedule()

    def abort(self) -> None:
        self._lose(None)
        if self.peer is not None:
            self._loop.call_later(self._latency(), self.peer._lose, ConnectionResetError())

    # --- reading ---

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        if self.peer is not None:
            self.peer._schedule()

    def is_reading(self) -> bool:
        return not self._paused

    # --- the wire ---

    def _latency(self) -> float:
        return self._random.choice(LATENCIES)

    def _schedule(self) -> None:
        if not self._due and not self._lost and (self._out or self._closing):
            self._due = True
            self._loop.call_later(self._latency(), self._deliver)

    def _deliver(self) -> None:
        self._due = False
        peer = self.peer
        if self._lost or peer is None or peer._lost or peer._paused:
            return
        if self._out:
            self._hand_over(peer)
        if not self._out and self._closing and not self._lost:
            self._end_in_order(peer)
        else:
            self._schedule()

    def _hand_over(self, peer: "Transport") -> None:
        count = len(self._out)
        if self._random.random() < 0.3:
            count = self._random.randint(1, count)
        data = bytes(self._out[:count])
        del self._out[:count]
        self.delivered += count
        if self._full and len(self._out) <= FULL_BYTES // 4 and not self._lost:
            self._full = False
            self.protocol.resume_writing()
        peer.protocol.data_received(data)

    def _end_in_order(self, peer: "Transport") -> None:
        self._lose(None)
        if not peer._lost and not peer.protocol.eof_received():
            peer._finish_after_eof()

    def _finish_after_eof(self) -> None:
        """As asyncio does: an end of file that is not answered closes, and nobody reads the
        rest."""
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self.lost_at = self._loop.time()
        self._out.clear()
        self._loop.call_soon(self._tell, error)

    def _tell(self, error: Exception | None) -> None:
        self._told = True
        self.protocol.connection_lost(error)


def join(
    loop: asyncio.AbstractEventLoop,
    random: Random,
    here: Any,
    there: Any,
    before: Callable[[], None] = lambda: None,
) -> tuple[Transport, Transport]:
    """Connects two protocols."""
    ours, theirs = Transport(loop, random), Transport(loop, random)
    ours.peer, theirs.peer = theirs, ours
    ours.protocol, theirs.protocol = here, there
    before()
    there.connection_made(theirs)
    here.connection_made(ours)
    return ours, theirs
