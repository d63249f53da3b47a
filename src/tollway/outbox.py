"""What one turn of the event loop writes, sent together at its end.

A write wakes whoever reads at the other end, and between turns that is mostly a sleeping processor:
waking one costs the writer some 5 us, more on a virtual machine. Sent back to back, one wake serves
many writes. Measured with 64 connections on one core: 143 us a request without, 130 with (kernel
time 33 and 25). The order of the writes is kept; nothing waits longer than the turn.

An event of a stream counts as delivered once it is written, and not where its client left in the
same turn: `sent` tells who wrote it. 64 streams of a chunk each
20 ms: 46 us a chunk without, 43 with (medians of 7 turns; nginx 22).
"""

import asyncio
from collections.abc import Callable


class Outbox:
    """For the transports of one event loop. Who closes one of them calls `flush` first."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[tuple[asyncio.WriteTransport, bytes, Callable[[], None] | None]] = []

    def write(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.WriteTransport,
        data: bytes,
        sent: Callable[[], None] | None = None,
    ) -> None:
        """`sent` is called as soon as it is written: never, where the other side has left by
        then."""
        if not self.waiting:
            loop.call_soon(self.flush)
        self.waiting.append((transport, data, sent))

    def flush(self) -> None:
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, []
        for transport, data, sent in waiting:
            if not transport.is_closing():
                transport.write(data)
                if sent is not None:
                    sent()
