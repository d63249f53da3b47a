"""What one turn of the event loop writes, sent together at its end.

A write wakes whoever reads at the other end, and between turns that is mostly a sleeping processor:
waking one costs the writer some 5 us, more on a virtual machine. Sent back to back, one wake serves
many writes. Measured with 64 connections on one core: 143 us a request without, 130 with (kernel
time 33 and 25). The order of the writes is kept; nothing waits longer than the turn.

Only whole replies and requests go this way. A stream's events do not: one that waited while its
client left in the same turn would have been counted as delivered (the simulator found that).
"""

import asyncio


class Outbox:
    """For the transports of one event loop. Who closes one of them calls `flush` first."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[tuple[asyncio.WriteTransport, bytes]] = []

    def write(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.WriteTransport, data: bytes
    ) -> None:
        if not self.waiting:
            loop.call_soon(self.flush)
        self.waiting.append((transport, data))

    def flush(self) -> None:
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, []
        for transport, data in waiting:
            if not transport.is_closing():
                transport.write(data)
