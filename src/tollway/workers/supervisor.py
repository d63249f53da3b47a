"""The process that starts the workers, keeps them up and stops them, and serves nothing itself.

A worker says every two seconds that its event loop runs; one that says nothing for half a minute
hangs, and is killed.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys

import msgspec

from tollway.app import find_child
from tollway.console import Console, Welcome
from tollway.database.data_directory import look_into
from tollway.errors import ConfigurationError, StartError
from tollway.process import bind, configure_logging
from tollway.reload import Terminal
from tollway.settings import CommandLine, Settings
from tollway.store import require_no_charges_left
from tollway.upstreams.embedded.process import Backoff
from tollway.upstreams.embedded.upstream import MakeChild
from tollway.workers.leash import (
    LEASH,
    SILENT_SECONDS_MAX,
    ModelAddress,
    Start,
    Stop,
    Up,
    from_worker,
    line,
)

STOP_SECONDS = 20.0
"""Beyond the drain: then a worker is killed."""

log = logging.getLogger("tollway.workers")


def serve_with_workers(count: int, given: CommandLine, console: Console) -> None:
    """Runs until SIGTERM or Ctrl-C. Raises `StartError` and `ConfigurationError`."""
    configure_logging()
    settings = given.settings()
    _check(settings, count)
    with contextlib.closing(bind(settings, shared=True)) as reserved:
        child = find_child(settings, console)
        asyncio.run(_Supervisor(count, given, settings, reserved, console).run(child))


def _check(settings: Settings, count: int) -> None:
    server = settings.server
    if not server.database.scheme:
        raise ConfigurationError(
            f"server.database: {count} workers are {count} processes, and a SQLite file belongs to "
            "one. Set it to postgresql://..., or leave --workers out."
        )
    if not server.rate_store.scheme:
        raise ConfigurationError(
            f"server.rate_store: each of {count} workers would count for itself in memory, and "
            f"admit {count} times each limit. Set it to valkey://..., or leave --workers out."
        )
    look_into(server.data_dir)
    require_no_charges_left(server.data_dir, workers=count)
    journal = server.data_dir / "journal"
    if journal.exists() and journal.stat().st_size:
        raise StartError(
            f"{journal} has charges that are not yet in the database, of a server without workers. "
            "Start without --workers once."
        )


class _Supervisor:
    def __init__(
        self,
        count: int,
        given: CommandLine,
        settings: Settings,
        reserved: socket.socket,
        console: Console,
    ) -> None:
        self._given = given
        self._settings = settings
        self._reserved = reserved
        self._console = console
        server = settings.server
        self._drain_seconds = server.drain_delay_seconds + server.drain_seconds + STOP_SECONDS
        self._workers: list[_Worker | None] = [None] * count
        self._model = ModelAddress()
        self._stopping = asyncio.Event()
        self._all_up = asyncio.Event()
        self._failed = False

    async def run(self, make_child: MakeChild | None) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up, Terminal())
        child = None if make_child is None else make_child(self._model_came, self._model_went)
        keeping = [asyncio.create_task(self._keep(number)) for number in range(len(self._workers))]
        try:
            if child is not None:
                await child.start()
            await asyncio.wait(keeping)
        finally:
            self._stop()
            await asyncio.wait(keeping)
            if child is not None:
                await child.stop()
        for task in keeping:
            task.result()
        if self._failed:
            raise StartError("A worker could not start; what it said is above.")

    def _told_to_stop(self) -> None:
        """As of one process, the first time is graceful, and another ends all at once."""
        if self._stopping.is_set():
            self._stop_workers(at_once=True)
        self._stop()

    def _hung_up(self, terminal: Terminal) -> None:
        if terminal.is_gone():  # each worker has found that, too
            self._stop()
        else:
            self._pass_on(signal.SIGHUP)

    def _stop(self) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            self._console.stopping(0, self._settings.server.drain_seconds)
            self._stop_workers()

    def _stop_workers(self, *, at_once: bool = False) -> None:
        for worker in self._workers:
            if worker is not None:
                worker.stop(at_once=at_once)

    def _pass_on(self, number: int) -> None:
        for worker in self._workers:
            # One that only starts would die of a SIGHUP. It looks at the file when it is up.
            if worker is not None and (worker.welcome or number != signal.SIGHUP):
                worker.signal(number)

    # --- one worker after the other ---------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        backoff, wait = Backoff(), 0.0
        while not self._stopping.is_set():
            began = loop.time()
            status = await self._run_one(number)
            if self._stopping.is_set():
                return
            if not self._all_up.is_set():
                # It would fail again: this is how a start is refused.
                self._failed = True
                self._stop()
                return
            wait = backoff.after(wait, loop.time() - began)
            log.error("worker %d ended with status %d; again in %g s", number, status, wait)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()

    async def _run_one(self, number: int) -> int:
        with contextlib.closing(bind(self._settings, shared=True, as_=self._reserved)) as listener:
            start = Start(self._given, number, len(self._workers), listener.fileno())
            worker = self._workers[number] = await _Worker.start(start, listener)
        # From here on the socket is the worker's alone: nobody queues at one that has died.
        worker.tell(self._model)
        try:
            welcome = await worker.up()
            if welcome is not None:
                self._is_up(worker, welcome)
            return await worker.ended(self._stopping, self._drain_seconds)
        finally:
            worker.close()
            self._workers[number] = None

    def _is_up(self, worker: "_Worker", welcome: Welcome) -> None:
        worker.welcome = welcome
        if self._all_up.is_set():
            log.warning("worker %d is up again", worker.number)
            return
        welcomes = [one.welcome for one in self._workers if one is not None and one.welcome]
        if len(welcomes) == len(self._workers):
            self._all_up.set()
            (secret,) = {one.secret for one in welcomes if one.secret} or {None}
            shown = msgspec.structs.replace(
                welcome, secret=secret, data_dir=self._settings.server.data_dir
            )
            self._console.welcome(shown)

    # --- the embedded model -----------------------------------------------------------------------

    def _model_came(self, address: str, api_key: str) -> None:
        self._tell_model(ModelAddress(address, api_key))

    async def _model_went(self) -> None:
        self._tell_model(ModelAddress())

    def _tell_model(self, model: ModelAddress) -> None:
        self._model = model
        for worker in self._workers:
            if worker is not None:
                worker.tell(model)


class _Worker:
    """A worker as its supervisor sees it."""

    def __init__(
        self,
        number: int,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.number = number
        self.welcome: Welcome | None = None
        self._process = process
        self._writer = writer
        self._up: asyncio.Future[Welcome | None] = asyncio.get_running_loop().create_future()
        self._silent_seconds: int | None = None
        self._listening = asyncio.create_task(self._listen(reader))
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, start: Start, listener: socket.socket) -> "_Worker":
        ours, theirs = socket.socketpair()
        with contextlib.closing(theirs):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "tollway.workers.worker"),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), listener.fileno()),
                env={**os.environ, LEASH: str(theirs.fileno())},
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = cls(start.number, process, reader, writer)
        worker.tell(start)
        return worker

    def tell(self, message: Start | ModelAddress | Stop) -> None:
        if not self._writer.is_closing():
            self._writer.write(line(message))

    def stop(self, *, at_once: bool) -> None:
        if self.welcome is None:  # it may not be listening yet
            self.signal(signal.SIGTERM)
        else:
            self.tell(Stop(at_once))

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def up(self) -> Welcome | None:
        """Once it serves; None where it ends instead."""
        return await self._up

    async def ended(self, stopping: asyncio.Event, drain_seconds: float) -> int:
        """Its exit status. Kills it where it outlasts its drain."""
        waiting = asyncio.ensure_future(self._process.wait())
        told = asyncio.ensure_future(stopping.wait())
        await asyncio.wait([waiting, told], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        done, _ = await asyncio.wait([waiting], timeout=drain_seconds)
        if not done:
            log.error("worker %d did not stop in time and is killed", self.number)
            self.signal(signal.SIGKILL)
        return await waiting

    def close(self) -> None:
        self._listening.cancel()
        self._watching.cancel()
        self._writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while written := await reader.readline():
                self._silent_seconds = 0
                message = from_worker.decode(written)
                if isinstance(message, Up):
                    self._up.set_result(message.welcome)
        if not self._up.done():
            self._up.set_result(None)

    async def _watch(self) -> None:
        """In seconds that this process counted: after one in which it was itself stopped, what
        workers have said meanwhile is read first."""
        while self._silent_seconds is None or self._silent_seconds < SILENT_SECONDS_MAX:
            await asyncio.sleep(1.0)
            if self._silent_seconds is not None:
                self._silent_seconds += 1
        log.error("worker %d has hung for %d s and is killed", self.number, SILENT_SECONDS_MAX)
        self.signal(signal.SIGKILL)
