"""uvicorn's server as Tollway runs it, and how it stops without losing a request.

A proxy in front learns late that a server goes. So first the server *winds down*: it still accepts,
and each reply is its connection's last and says so. Then it stops accepting, and what runs may come
to its end until the drain's deadline.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import cast

import uvicorn

from tollway.api.completions import ChatDoor
from tollway.api.edge import EdgeProtocol

SETTLE_SECONDS_MAX = 10.0
ACCEPTED_A_TURN = 16
TICK_SECONDS = 1.0
"""As often as the replies' date changes."""


class HttpServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, door: ChatDoor) -> None:
        super().__init__(config)
        self._door = door
        self._exiting = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self):  # pyright: ignore[reportMissingParameterType]
        """uvicorn raises the signals that it caught again when it has stopped; the app has more to
        close."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """libuv takes one connection from a listener in each turn of the event loop
        (https://github.com/libuv/libuv/pull/3696). A turn with hundreds of streams lasts up to
        0.1 s, so that new clients would queue for seconds: each listener is listened to by several
        descriptors, and each of them takes one."""
        listeners = sockets or []
        more = [one.dup() for one in listeners for _ in range(ACCEPTED_A_TURN - 1)]
        await super().startup(listeners + more)

    async def main_loop(self) -> None:
        """uvicorn's looks ten times a second whether to exit; this one is told (`exit`). With rarer
        looks at the configuration it took an idle server from 2.2 to 1.3 ms of CPU a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._exiting.wait()

    def exit(self) -> None:
        self.should_exit = True
        self._exiting.set()

    def wind_down(self) -> None:
        self._door.winding_down = True
        for connection in cast("set[EdgeProtocol]", self.server_state.connections).copy():
            connection.wind_down()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._door.winding_down = True
        # The kernel has accepted more than was taken from it, and would reset them.
        last = [one for listener in sockets or () for one in _waiting_at(listener)]
        for server in self.servers:
            server.close()
        await self._take_in(last)
        await super().shutdown(sockets)

    async def _take_in(self, connections: Sequence[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for connection in connections:
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(0)  # they read what has come with them

    def _protocol(self) -> asyncio.Protocol:
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        return make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def stop(self, serving: asyncio.Task[None]) -> None:
        """Ends when no request runs any more: what the drain's deadline cancelled still settles."""
        self.exit()
        await asyncio.wait([serving])
        tasks = self.server_state.tasks
        if tasks:
            for task in tasks:
                # A second cancellation would fall on the settlement that the first one set off, and
                # the client would not be told.
                if not task.cancelling():
                    task.cancel()
            await asyncio.wait(tasks, timeout=SETTLE_SECONDS_MAX)
        if not serving.cancelled() and (error := serving.exception()) is not None:
            raise error


def _waiting_at(listener: socket.socket) -> list[socket.socket]:
    connections: list[socket.socket] = []
    with contextlib.suppress(OSError):  # BlockingIOError: there is none left
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            connections.append(connection)
    return connections
