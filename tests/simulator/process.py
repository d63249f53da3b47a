"""One life of the gateway's process: the real parts as `tollway.app` joins them, on the virtual
loop and a database whose writer has no thread."""

# The simulator takes the place of the writer's thread and of the app's start.
# pyright: reportPrivateUsage=false

import asyncio
import contextlib
import functools
import shutil
import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from unittest import mock

import msgspec
import uvicorn
from tests.simulator.loop import VirtualLoop, VirtualTime
from tests.simulator.network import Transport, join
from tests.unit.ledger.faults import FAILURES, Failure
from uvicorn.server import ServerState

from tollway import app
from tollway.accounts import Accounts
from tollway.api import edge
from tollway.api.access_log import AccessLog
from tollway.api.completions import ChatDoor
from tollway.api.edge import EdgeProtocol
from tollway.api.exchange import Exchange
from tollway.api.idleness import Idleness
from tollway.api.observer import RequestObserver
from tollway.clock import SystemClock
from tollway.database import writer
from tollway.database.journal import Ballast, Journal
from tollway.database.sqlite import SqliteDatabase, connect
from tollway.database.writer import Work
from tollway.deadlines import Deadlines
from tollway.errors import RequestError
from tollway.gateway import relay
from tollway.gateway.pipeline import Pipeline
from tollway.gateway.types import Call
from tollway.ledger.base import genesis
from tollway.ledger.sqlite import SqliteLedger
from tollway.metrics.counters import Metrics
from tollway.rates.concurrency import Concurrency
from tollway.rates.memory import MemoryRateLimiter
from tollway.settings import Embedded, Limits, Model, ServedBy, Server, Settings
from tollway.store import open_store
from tollway.tokens import Tokens
from tollway.upstreams.health import Health
from tollway.upstreams.openai import OpenAICompatible
from tollway.upstreams.places import Places
from tollway.upstreams.watched import Watched

MODEL = "acme/m1"
DEADLINES = Deadlines(
    connect_seconds=1.0, first_byte_seconds=5.0, between_chunks_seconds=4.0, total_seconds=40.0
)
WRITE_SECONDS = (0.0, 0.001, 0.001, 0.01, 0.4)
BALLAST_BYTES = 4096

T = TypeVar("T")


class HostileDisk:
    """`failure` is how the database's file fails now, `journal_fails` whether its journal does."""

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self.journal_fails = False

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = connect(path, _Connection)
        assert isinstance(connection, _Connection)
        connection.disk = self
        return connection

    def fsync(self, _: int) -> None:
        if self.journal_fails:
            raise OSError(5, "Input/output error")


class _Connection(sqlite3.Connection):
    disk: HostileDisk | None = None

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        failure = None if self.disk is None else self.disk.failure
        if failure is not None:
            if sql == "BEGIN IMMEDIATE" and failure == FAILURES[0]:
                raise _error(sqlite3.SQLITE_IOERR, "disk I/O error")
            if sql.startswith("INSERT") and failure == FAILURES[1]:
                raise _error(sqlite3.SQLITE_FULL, "database or disk is full")
            if sql == "COMMIT" and failure == FAILURES[2]:
                raise _error(sqlite3.SQLITE_IOERR, "disk I/O error")
        cursor = super().execute(sql, *parameters)
        if sql == "COMMIT" and failure == FAILURES[3]:
            raise _error(sqlite3.SQLITE_IOERR, "disk I/O error")
        return cursor


def _error(code: int, message: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


class SimulatedDatabase(SqliteDatabase):
    """The real writer, run between two steps of the loop after as long as the dice say."""

    def __init__(self, path: Path, disk: HostileDisk, random: Random) -> None:
        super().__init__(
            path,
            connect_writer=disk.connect,
            journal=Journal(path.with_name("journal"), fsync=disk.fsync),
            ballast=Ballast(path.with_name("ballast"), BALLAST_BYTES),
        )
        self._random = random
        self._pending: list[Work] = []
        self._due = False
        self._dropped = False
        self.submit: Callable[[Work], None] = self._take

    def open(self) -> None:
        self._writer._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        batch, self._pending = self._pending, []
        self._writer._handle(batch, stopping=True)
        await asyncio.sleep(0)
        self.drop()

    def drop(self) -> None:
        """Also after a kill: what had not been committed is not."""
        self._dropped = True
        self._writer._abandon()
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    async def recover(self, apply: Callable[[sqlite3.Connection, list[bytes]], T]) -> T:
        return self._recover(apply)

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        await asyncio.sleep(0)
        return self._run_query(query)

    def _take(self, work: Work) -> None:
        if self._dropped:
            return
        self._pending.append(work)
        self._schedule(self._random.choice(WRITE_SECONDS))

    def _schedule(self, seconds: float) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(seconds, self._write)

    def _write(self) -> None:
        self._due = False
        batch, self._pending = self._pending, []
        self._writer._handle(batch, stopping=False)
        if self._writer.fault is not None:
            self._schedule(0.5)


class SimulatedDoor(ChatDoor):
    """The edge reads the real clock and random bytes; a schedule has its own."""

    def __init__(self, pipeline: Pipeline, time: VirtualTime, life: int) -> None:
        super().__init__(pipeline, time, ())
        self._time = time
        self._life = life
        self._calls = 0

    async def serve(self, call: Call, exchange: Exchange) -> None:
        self._calls += 1
        request_id = f"req_{int(self._time.now() * 1000):012x}{self._life:04d}{self._calls:016d}"
        call = msgspec.structs.replace(
            call, request_id=request_id, now=self._time.now(), began=self._time.monotonic()
        )
        await super().serve(call, exchange)


class Process:
    """What is up between a start and its end."""

    def __init__(
        self,
        loop: VirtualLoop,
        time: VirtualTime,
        random: Random,
        database: SimulatedDatabase,
        concurrent_requests: int,
    ) -> None:
        self.loop = loop
        self.time = time
        self.database = database
        self.state = ServerState()
        self._idleness = Idleness()
        self._random = random
        self._concurrent_requests = concurrent_requests
        self._open = contextlib.AsyncExitStack()

    async def start(self, life: int, prices: tuple[int, int], *, trusting: bool) -> None:
        settings = _settings(self.database.path.parent, prices, self._concurrent_requests)
        time, metrics = self.time, Metrics()
        with contextlib.ExitStack() as patches:
            patches.enter_context(mock.patch("tollway.store.SqliteDatabase", self._take_database))
            patches.enter_context(mock.patch("tollway.store.SystemClock", return_value=time))
            lock = "tollway.database.data_directory.DataDirectoryLock"
            patches.enter_context(mock.patch(lock, _NoLock))
            store = await self._open.enter_async_context(open_store(settings))
        assert isinstance(store.ledger, SqliteLedger)
        self.ledger, self.operations = store.ledger, store.operations
        limiter = MemoryRateLimiter(time)
        await app._refill_rates(limiter, store)
        observer = RequestObserver(metrics, AccessLog("", self.database.path.parent, metrics), time)
        self.upstream = OpenAICompatible("gpu-1", "http://gpu-1/v1", deadlines=DEADLINES)
        # A circuit that opens would keep most of a schedule's faults from happening.
        health = (_Trusting if trusting else Health)(
            "gpu-1", time.monotonic, self._random.random, 0
        )
        watched = {"gpu-1": Watched(self.upstream, health, Places())}
        gateway = app._gateway(
            settings, store, watched, limiter, Concurrency(), observer, chance=self._random.random
        )
        self.pipeline = gateway.pipeline
        self.concurrency = gateway.gate._concurrency
        self._door = SimulatedDoor(self.pipeline, time, life)
        self._checkpoints = self.loop.create_task(app._write_checkpoints(self.pipeline, store))

    def _take_database(self, *_: object, **__: object) -> SqliteDatabase:
        return self.database

    def accept(self, client: Any) -> Transport:
        """A client's new connection; the gateway's end of it."""
        protocol = EdgeProtocol(
            _config(), self.state, {}, self.loop, door=self._door, idleness=self._idleness
        )
        gateways, _ = join(self.loop, self._random, protocol, client)
        return gateways

    async def stop(self, drain_seconds: float) -> None:
        """As SIGTERM does: what runs may end, until the drain's deadline."""
        for protocol in list(self.state.connections):
            protocol.shutdown()
        if self.state.tasks:
            await asyncio.wait(self.state.tasks, timeout=drain_seconds)
        for task in list(self.state.tasks):
            task.cancel()
        if self.state.tasks:
            await asyncio.wait(self.state.tasks)
        self._checkpoints.cancel()
        await self.upstream.stop()
        while self.state.connections:
            for protocol in list(self.state.connections):
                protocol.transport.abort()
            await asyncio.sleep(0.05)
        await self._open.aclose()


class _Trusting(Health):
    """So that an upstream may go on lying."""

    def reported(self, shortfall: int) -> None:
        pass


class _NoLock:
    """The dead of a schedule are in the process of the living."""

    def __init__(self, data_dir: Path) -> None: ...

    def acquire(self) -> None: ...

    def release(self) -> None: ...


def _settings(data_dir: Path, prices: tuple[int, int], concurrent_requests: int) -> Settings:
    return Settings(
        server=Server(data_dir=data_dir, store_replies=True),
        limits=Limits(
            requests_per_minute=1000,
            concurrent_requests=concurrent_requests,
            failed_authentications_per_minute=1000,
        ),
        embedded=Embedded(),
        upstreams=(),
        models=(
            Model(
                id=MODEL,
                tier="t",
                prompt_rate=prices[0],
                completion_rate=prices[1],
                context_length=10_000,
                max_output_tokens=400,
                default_max_tokens=60,
                supported_parameters=None,
                confidential=False,
                upstreams=(ServedBy("gpu-1", "parrot", 1),),
            ),
        ),
    )


class _NoApp:
    """Only the metered route is asked for."""

    async def __call__(self, scope: object, receive: object, send: object) -> None: ...


@functools.cache
def _config() -> uvicorn.Config:
    return uvicorn.Config(
        _NoApp(),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )


@contextlib.contextmanager
def time_of(time: VirtualTime) -> Generator[None]:
    """Three modules read the clock themselves."""
    with contextlib.ExitStack() as stack:
        for module in (writer, relay, edge):
            stack.enter_context(mock.patch.object(module, "time", time))
        yield


class Template:
    """A migrated database with accounts and tokens, made once and copied for each schedule."""

    def __init__(self, directory: Path, balances: Sequence[int]) -> None:
        self.path = directory / "tollway.db"
        self.accounts: list[str] = []
        self.secrets: list[list[str]] = []
        self.token_ids: list[list[str]] = []
        asyncio.run(self._fill(balances))

    def copy_to(self, directory: Path) -> Path:
        directory.mkdir()
        return Path(shutil.copyfile(self.path, directory / "tollway.db"))

    async def _fill(self, balances: Sequence[int]) -> None:
        async with _opened(self.path) as database:
            clock = SystemClock()
            accounts, tokens = Accounts(database, clock), Tokens(database, clock)
            ledger = SqliteLedger(database, clock, _never_refused)
            await ledger.recover()
            for number, balance in enumerate(balances):
                account = await accounts.create(f"a{number}", chain_head=genesis)
                await ledger.add(
                    account.id, balance, kind="top_up", ref=f"t{number}", description="prepaid"
                )
                issued = [
                    await tokens.issue(
                        account.id, name=f"k{cap}", scopes=("llm-all",), spend_cap=cap
                    )
                    for cap in (None, 900)
                ]
                self.accounts.append(account.id)
                self.secrets.append([secret for _, secret in issued])
                self.token_ids.append([token.id for token, _ in issued])


def _never_refused(account_id: str, token_id: str) -> RequestError | None:
    return None


@contextlib.asynccontextmanager
async def _opened(path: Path) -> AsyncGenerator[SqliteDatabase]:
    database = SqliteDatabase(path, ballast=Ballast(path.with_name("ballast"), BALLAST_BYTES))
    database.open()
    try:
        yield database
    finally:
        await database.close()
