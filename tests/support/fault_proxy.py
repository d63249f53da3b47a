"""A TCP proxy that misbehaves on the way back, in front of a server that does not.

What the server sends is delayed, cut short, reset, sliced, swallowed or corrupted, at a byte of
each reply. A reply begins where the client has sent something: the requests of one connection come
one after another. The server knows nothing of it, so what it says that it sent stays true.

    with FakeUpstream() as upstream, FaultProxy(upstream.port) as proxy:
        proxy.misbehave(CUT.at(40))
        ...
        proxy.behave()

It runs in a thread with a loop of its own. A change is seen by the next request of a connection.
"""

import asyncio
import contextlib
import dataclasses
import socket
import struct
from dataclasses import dataclass
from typing import Literal, Self

from tests.support.in_thread import ServerInThread

READ_BYTES = 1 << 16
CORRUPT_BYTE = b"\xff"  # not UTF-8, and in no head

FaultKind = Literal["none", "delay", "cut", "reset", "slice", "black hole", "corrupt", "refuse"]


@dataclass(frozen=True, slots=True)
class Fault:
    """`byte` counts the bytes of one reply, its head included; `delay` waits `seconds` before it,
    `slice` between pieces of `size` bytes. `refuse` ends a connection as soon as it is made."""

    kind: FaultKind
    byte: int = 0
    seconds: float = 0.0
    size: int = 1

    def at(self, byte: int) -> "Fault":
        return dataclasses.replace(self, byte=byte)

    def __str__(self) -> str:
        return f"{self.kind} at {self.byte}"


NONE = Fault("none")
DELAY = Fault("delay", seconds=0.3)
CUT = Fault("cut")
RESET = Fault("reset")
SLICE = Fault("slice", seconds=0.0002, size=3)
BLACK_HOLE = Fault("black hole")
CORRUPT = Fault("corrupt")
REFUSE = Fault("refuse")


class FaultProxy(ServerInThread):
    """Use as a context manager, in front of 127.0.0.1 and the target's port."""

    def __init__(self, target_port: int) -> None:
        super().__init__()
        self.connections = 0
        self.faults_played: dict[FaultKind, int] = {}
        self._target_port = target_port
        self.fault = NONE
        self._to = b""
        self._is_once = False
        self._open: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port: int = self._listener.getsockname()[1]
        return super().__enter__()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def misbehave(self, fault: Fault, *, to: bytes = b"", once: bool = False) -> None:
        """In replies `to` what has these bytes; `once`: until it has been played."""
        self.fault, self._to, self._is_once = fault, to, once

    def behave(self) -> None:
        self.fault = NONE

    # --- the proxy ---

    async def begin(self) -> None:
        self._server = await asyncio.start_server(self._accepted, sock=self._listener)

    async def end(self) -> None:
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        self.connections += 1
        if self.fault.kind == "refuse":
            self.played("refuse")
            _reset(writer)
            return
        # The proxy's end may come from either side, or from a fault: nobody is left behind.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
            try:
                await _Exchange(self, reader, writer, there, back).run()
            finally:
                for end in (back, writer):
                    end.close()

    def fault_of(self, asked: bytes) -> Fault:
        return self.fault if self._to in asked else NONE

    def played(self, kind: FaultKind) -> None:
        if self._is_once:
            self.behave()
        self.faults_played[kind] = self.faults_played.get(kind, 0) + 1


class _Exchange:
    """One connection. `_sent` are the bytes of the reply that is on its way."""

    def __init__(
        self,
        proxy: FaultProxy,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._to_client = to_client
        self._server = server
        self._to_server = to_server
        self._fault = NONE
        self._sent = 0
        self._done = False

    async def run(self) -> None:
        directions = [asyncio.create_task(self._there()), asyncio.create_task(self._back())]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _there(self) -> None:
        while data := await self._client.read(READ_BYTES):
            self._fault, self._sent, self._done = self._proxy.fault_of(data), 0, False
            self._to_server.write(data)
            await self._to_server.drain()

    async def _back(self) -> None:
        while data := await self._server.read(READ_BYTES):
            if not await self._pass_on(data):
                return

    async def _pass_on(self, data: bytes) -> bool:
        """Whether the connection goes on."""
        fault, start = self._fault, self._sent
        self._sent += len(data)
        reached = not self._done and fault.kind != "none" and self._sent > fault.byte
        if reached:
            self._done = True
            self._proxy.played(fault.kind)
        before = data[: max(0, fault.byte - start)]
        if fault.kind == "black hole":
            await self._write(before)
            return True
        if fault.kind == "slice":
            for index in range(0, len(data), fault.size):
                await self._write(data[index : index + fault.size])
                await asyncio.sleep(fault.seconds)
            return True
        if not reached:
            await self._write(data)
            return True
        if fault.kind in ("cut", "reset"):
            await self._write(before)
            if fault.kind == "reset":
                _reset(self._to_client)
            return False
        if fault.kind == "delay":
            await self._write(before)
            await asyncio.sleep(fault.seconds)
            await self._write(data[len(before) :])
        else:
            await self._write(before + CORRUPT_BYTE + data[len(before) + 1 :])
        return True

    async def _write(self, data: bytes) -> None:
        if data:
            self._to_client.write(data)
            await self._to_client.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    peer: socket.socket = writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
