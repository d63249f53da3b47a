"""A worker's process: it serves as one without workers would, and does what its supervisor says."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import uvloop

from tollway.api.admin.control import WORKERS
from tollway.api.siblings import Siblings
from tollway.app import serve_on
from tollway.console import PlainConsole, Welcome
from tollway.errors import TollwayError, how_many
from tollway.process import configure_logging, stop_at_once, stop_on_signals
from tollway.reload import ConfigurationFile
from tollway.settings import Embedded, Settings
from tollway.upstreams.embedded.process import RunningChild, busy_slots
from tollway.workers.leash import (
    ALIVE_EVERY_SECONDS,
    LEASH,
    Alive,
    ModelAddress,
    Start,
    Stop,
    Up,
    line,
    to_worker,
)

log = logging.getLogger("tollway.workers")


def main() -> None:
    """What a worker's process runs."""
    leash = socket.socket(fileno=int(os.environ.pop(LEASH)))
    lines = leash.makefile("rb", buffering=0)
    start = to_worker.decode(lines.readline())
    assert isinstance(start, Start)
    listener = socket.socket(fileno=start.listener)
    configure_logging()
    try:
        settings = _of_worker(start, start.given.settings())
        uvloop.run(_serve(start, settings, leash, listener))
    except TollwayError as error:
        log.error("worker %d: %s", start.number, error.message)
        raise SystemExit(1) from None


def _of_worker(start: Start, settings: Settings) -> Settings:
    """A folder of its own, one access log for all, and its part of the embedded model's slots."""
    server, embedded = settings.server, settings.embedded
    access_log = server.access_log
    if access_log not in ("", "-"):
        access_log = str(server.data_dir / access_log)
    parallel, more = divmod(embedded.parallel, start.workers)
    return msgspec.structs.replace(
        settings,
        server=msgspec.structs.replace(
            server, data_dir=_folder(server.data_dir, start.number), access_log=access_log
        ),
        embedded=msgspec.structs.replace(
            embedded, parallel=max(1, parallel + (start.number < more))
        ),
    )


def _folder(data_dir: Path, number: int) -> Path:
    return data_dir / WORKERS / str(number)


async def _serve(
    start: Start, settings: Settings, leash: socket.socket, listener: socket.socket
) -> None:
    reader, writer = await asyncio.open_connection(sock=leash)
    child = _LeashedChild(settings.embedded.parallel)
    stopping = stop_on_signals()
    following = asyncio.create_task(_follow(reader, child, stopping))
    telling = asyncio.create_task(_tell_alive(writer))

    def read(embedded: Embedded | None) -> Settings:
        return _of_worker(start, start.given.settings(embedded))

    file = start.given.file
    base = settings.server.data_dir.parent.parent
    await serve_on(
        listener,
        settings,
        _LeashedConsole(writer),
        None if file is None else ConfigurationFile(file, read),
        child.attach if settings.serves_embedded else None,
        stopping,
        Siblings(start.number, [_folder(base, number) for number in range(start.workers)]),
    )
    following.cancel()
    telling.cancel()


async def _tell_alive(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(line(Alive()))
        await asyncio.sleep(ALIVE_EVERY_SECONDS)


async def _follow(
    reader: asyncio.StreamReader, child: "_LeashedChild", stopping: asyncio.Event
) -> None:
    try:
        while written := await reader.readline():
            message = to_worker.decode(written)
            if isinstance(message, ModelAddress):
                await child.told(message)
            else:
                assert isinstance(message, Stop)
                if message.at_once:
                    stop_at_once()
                stopping.set()
    except ConnectionError:
        pass  # it was killed before it had read what this worker told it
    finally:
        stopping.set()  # the supervisor is gone


class _LeashedConsole(PlainConsole):
    """Tells the supervisor, which tells the operator."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def welcome(self, welcome: Welcome) -> None:
        self._writer.write(line(Up(welcome)))

    def stopping(self, running: int, drain_seconds: float) -> None:
        requests = how_many(running, "request")
        log.info("a worker stops: %s may run on for up to %g s", requests, drain_seconds)


class _LeashedChild:
    """The supervisor's embedded model. Implements `RunningChild`."""

    def __init__(self, parallel: int) -> None:
        self._parallel = parallel
        self._model = ModelAddress()
        self._there = asyncio.Event()
        self._came_up: Callable[[str, str], None] | None = None
        self._went_down: Callable[[], Awaitable[None]] | None = None

    def attach(
        self, came_up: Callable[[str, str], None], went_down: Callable[[], Awaitable[None]]
    ) -> RunningChild:
        self._came_up, self._went_down = came_up, went_down
        self._tell_came()
        return self

    async def told(self, model: ModelAddress) -> None:
        if self._went_down is not None and self._model.address:
            await self._went_down()
        self._model = model
        self._tell_came()

    def _tell_came(self) -> None:
        if self._model.address and self._came_up is not None:
            self._came_up(self._model.address, self._model.api_key)
            self._there.set()

    async def start(self) -> None:
        await self._there.wait()

    async def stop(self) -> None:
        """It is the supervisor's."""

    def ready(self) -> bool:
        return bool(self._model.address)

    async def busy_slots(self) -> int | None:
        return await busy_slots(self._model.address or None, self._model.api_key, self._parallel)


if __name__ == "__main__":
    main()
