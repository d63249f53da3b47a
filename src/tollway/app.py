"""Puts the program together, starts it and stops it. Only here are the concrete parts chosen.

`open_store` opens what the commands need: the data directory, its database, and the modules on
it. `serve` adds upstreams, the gateway and its doors, runs until it is told to stop, lets what
runs come to its end, and closes all in reverse.
"""

import asyncio
import contextlib
import ctypes
import functools
import gc
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
import uvicorn
import uvloop

from tollway import __version__
from tollway.accounts import Accounts
from tollway.api.access_log import AccessLog
from tollway.api.admin.control import ControlServer
from tollway.api.admin.operations import Operations
from tollway.api.completions import ChatDoor
from tollway.api.edge import EdgeProtocol
from tollway.api.observer import RequestObserver
from tollway.api.operation import ApiParts
from tollway.api.routes import create_app
from tollway.api.server import HttpServer
from tollway.api.siblings import Siblings, WithMetrics
from tollway.catalogue import Catalogue
from tollway.clock import Clock, SystemClock, new_id
from tollway.console import Console, Welcome
from tollway.database.base import Database
from tollway.database.sqlite import (
    DATABASE_FILE,
    SqliteDatabase,
    connect,
    own_data_directory,
    unusable,
)
from tollway.errors import (
    AuthenticationFailed,
    PermissionDenied,
    Refused,
    RequestError,
    StartError,
)
from tollway.gateway.admit import Gate
from tollway.gateway.authenticate import Authenticator
from tollway.gateway.pipeline import Pipeline
from tollway.gateway.route import Router
from tollway.gateway.settle import checkpoints_of
from tollway.ledger.base import Ledger, Liveness, genesis
from tollway.ledger.signing import SigningKey, new_key
from tollway.ledger.sqlite import SqliteLedger
from tollway.ledger.verify import Violation, verify
from tollway.live import Live, deadlines_of, limits_of, offers_of
from tollway.metrics import Exposition, Metrics, UpstreamNow
from tollway.outbox import Outbox
from tollway.rates.base import CHAT, WINDOW_SECONDS, RateLimiter
from tollway.rates.concurrency import Concurrency
from tollway.rates.memory import MemoryRateLimiter
from tollway.reload import ConfigurationFile, Reloader, Terminal, WithReload
from tollway.settings import EMBEDDED, Settings, StoreAddress
from tollway.settings import Upstream as UpstreamSettings
from tollway.tokens import Tokens
from tollway.upstreams.balance import Watched
from tollway.upstreams.checks import keep_checking
from tollway.upstreams.dialects import DIALECTS
from tollway.upstreams.embedded.upstream import (
    EmbeddedSettings,
    EmbeddedUpstream,
    MakeChild,
    child_of,
    find_model,
)
from tollway.upstreams.health import Health
from tollway.upstreams.openai import OpenAICompatible
from tollway.upstreams.places import Places

if TYPE_CHECKING:
    from tollway.database.instance import Change
    from tollway.database.postgres import PostgresDatabase
    from tollway.database.rights import Migrated
    from tollway.ledger.postgres.move import Moved

CHECKPOINT_SECONDS = 1.0
KEY_SWEEP_SECONDS = 60.0
START_LOCK = 7_405_602
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

log = logging.getLogger("tollway")


@dataclass(frozen=True, slots=True)
class Store:
    """What is kept: the database and the modules that own its tables."""

    database: Database
    accounts: Accounts
    tokens: Tokens
    ledger: Ledger
    catalogue: Catalogue
    operations: Operations
    clock: Clock
    signing_key: SigningKey
    fault: Callable[[], str | None]
    new_secret: str | None
    """The first token's, where this start made it."""


def serve(settings: Settings, console: Console, file: ConfigurationFile | None) -> None:
    """Runs until SIGTERM or Ctrl-C. `file` is what the settings came from, if from one, and is read
    again when it changes. Raises `StartError` and `ConfigurationError`."""
    configure_logging()
    for warning in settings.warnings:
        log.warning("%s", warning)
    with contextlib.closing(bind(settings)) as listener:
        # Before there is an event loop: a fetch that is interrupted cleans up after itself.
        child = find_child(settings, console)
        uvloop.run(serve_on(listener, settings, console, file, child))


def migrate_database(
    settings: Settings, address: StoreAddress | None, serving_role: str | None
) -> "Migrated":
    """`address` is the migrating role's, None: the one that serves. The role of the settings' own
    address is the one that gets the rights where none is named. Raises `StartError`."""
    from tollway.database.rights import migrate

    server = settings.server
    if address is None:
        address = server.database
    if not address.scheme:
        raise Refused(
            "There is nothing to migrate: a SQLite file is migrated by each start. Give server."
            "database, or --database."
        )
    if serving_role is None and server.database.scheme:
        serving_role = urlsplit(server.database.reveal()).username
    return migrate(address.reveal(), serving_role)


async def move_to_postgres(settings: Settings) -> "Moved":
    """All that the SQLite file of the data directory has, to the configured Postgres. The file is
    renamed then, so that nobody serves from it by mistake. Raises `Refused` and `StartError`."""
    from tollway.database.postgres import PostgresDatabase
    from tollway.ledger.postgres.move import move_from_sqlite

    server = settings.server
    if not server.database.scheme:
        raise Refused("Say where to: set server.database to postgresql://...")
    path = server.data_dir / DATABASE_FILE
    if not path.exists():
        raise Refused(f"There is no SQLite file in {server.data_dir}. Check --data-dir.")
    from_file = msgspec.structs.replace(server, database=StoreAddress("sqlite"))
    as_file = msgspec.structs.replace(settings, server=from_file)
    # Opened as a start opens it: what a crash left is settled first.
    async with _open_sqlite(as_file, None, for_serving=False) as store:
        database = PostgresDatabase(server.database.reveal())
        await _open(database)
        try:
            with contextlib.closing(connect(path)) as connection:
                key = store.signing_key.private_pem()
                moved = await move_from_sqlite(connection, database, key)
        finally:
            await database.close()
    path.rename(path.with_name("moved-to-postgres.db"))
    return moved


async def check_database(settings: Settings) -> tuple[str | None, list[str]]:
    """Why the configured database could not be served from (None: it could), and what its role
    could do that it need not. Raises `StartError` where it cannot be reached."""
    from tollway.database.postgres import PostgresDatabase
    from tollway.database.rights import complaints, shown

    database = PostgresDatabase(settings.server.database.reveal())
    await database.open()
    try:
        lacks, beyond = await complaints(database)
    finally:
        await database.close()
    return next(shown(lacks, []), None), list(shown([], beyond))


async def check_rate_store(settings: Settings) -> str:
    """The name and version of the configured server. Raises `StartError` where it cannot be
    used."""
    from tollway.rates.valkey import probe

    return await probe(settings.server.rate_store.reveal())


@asynccontextmanager
async def open_operations(
    settings: Settings, *, may_create: bool = False
) -> AsyncGenerator[Operations]:
    """For commands while no server runs. Raises `StartError` where the data directory is in use,
    and `Refused` where there is none and `may_create` is not said: it is then a typing error."""
    configure_logging()
    data_dir = settings.server.data_dir
    is_file = not settings.server.database.scheme
    if is_file and not may_create and not (data_dir / DATABASE_FILE).exists():
        raise Refused(
            f"There is no Tollway in {data_dir}. Check --data-dir, or start with `tollway serve`."
        )
    async with open_store(settings, for_serving=False) as store:
        yield store.operations


@asynccontextmanager
async def open_store(
    settings: Settings,
    on_commit: Callable[[int, float], None] | None = None,
    *,
    for_serving: bool = True,
) -> AsyncGenerator[Store]:
    """Not for serving, nothing is made that was not there, and Postgres is opened beside the
    replicas that serve from it."""
    if not settings.server.database.scheme:
        async with _open_sqlite(settings, on_commit, for_serving) as store:
            yield store
    elif for_serving:
        with own_data_directory(settings.server.data_dir):
            async with _open_postgres(settings, on_commit) as store:
                yield store
    else:
        async with _open_postgres_for_commands(settings) as store:
            yield store


@asynccontextmanager
async def _open_sqlite(
    settings: Settings, on_commit: Callable[[int, float], None] | None, for_serving: bool
) -> AsyncGenerator[Store]:
    clock = SystemClock()
    data_dir = settings.server.data_dir
    with own_data_directory(data_dir):
        signing_key = SigningKey.load(data_dir)
        database = SqliteDatabase(data_dir / DATABASE_FILE, on_commit=on_commit)
        database.open()
        try:
            accounts, tokens = Accounts(database, clock), Tokens(database, clock)
            await accounts.load()
            await tokens.load()
            ledger = SqliteLedger(database, clock, _liveness(accounts, tokens, clock))
            await ledger.load()
            for recovered in await ledger.recover():
                log.warning("recovered after a crash: %s", recovered)

            async def verified() -> list[Violation]:
                holds = ledger.open_holds()
                return await database.read(lambda connection: verify(connection, holds))

            yield await _store(
                settings,
                clock,
                database,
                accounts,
                tokens,
                ledger,
                signing_key,
                verified,
                lambda: database.fault,
                for_serving=for_serving,
            )
        finally:
            await database.close()


@asynccontextmanager
async def _open_postgres(
    settings: Settings, on_commit: Callable[[int, float], None] | None
) -> AsyncGenerator[Store]:
    from tollway.database.instance import Instance
    from tollway.database.postgres import PostgresDatabase
    from tollway.ledger.postgres.ledger import PostgresLedger
    from tollway.ledger.postgres.verify import verify_postgres

    clock = SystemClock()
    data_dir = settings.server.data_dir
    database = PostgresDatabase(settings.server.database.reveal())
    async with AsyncExitStack() as stack:
        await _open(database)
        stack.push_async_callback(database.close)
        accounts, tokens = Accounts(database, clock), Tokens(database, clock)
        instance = Instance(database, clock, data_dir)

        async def read_again(changes: "Collection[Change]") -> None:
            await accounts.read_again(c.subject for c in changes if c.kind == "account")
            await tokens.read_again(c.subject for c in changes if c.kind == "token")

        instance.on_changes = read_again
        refusal = _liveness(accounts, tokens, clock)
        ledger = PostgresLedger(database, instance, clock, refusal, data_dir, on_commit=on_commit)
        # One replica after the other: the first makes what the others then find.
        async with database.exclusive(START_LOCK):
            for recovered in await ledger.open():
                log.warning("recovered after a crash: %s", recovered)
            stack.push_async_callback(ledger.close)
            await accounts.load()
            await tokens.load()
            await ledger.load()
            signing_key = await _signing_key(database, clock)
            store = await _store(
                settings,
                clock,
                database,
                accounts,
                tokens,
                ledger,
                signing_key,
                lambda: verify_postgres(database),
                lambda: ledger.fault,
                for_serving=True,
            )
        await instance.start()
        yield store


@asynccontextmanager
async def _open_postgres_for_commands(settings: Settings) -> AsyncGenerator[Store]:
    from tollway.database.instance import Instance
    from tollway.database.postgres import PostgresDatabase
    from tollway.ledger.postgres.ledger import PostgresLedger
    from tollway.ledger.postgres.verify import verify_postgres

    clock = SystemClock()
    database = PostgresDatabase(settings.server.database.reveal())
    async with AsyncExitStack() as stack:
        await _open(database)
        stack.push_async_callback(database.close)
        accounts, tokens = Accounts(database, clock), Tokens(database, clock)
        await accounts.load()
        await tokens.load()
        data_dir = settings.server.data_dir
        instance = Instance(database, clock, data_dir)
        refusal = _liveness(accounts, tokens, clock)
        ledger = PostgresLedger(database, instance, clock, refusal, data_dir)
        ledger.open_for_commands()
        stack.push_async_callback(ledger.close)
        await ledger.load()
        yield await _store(
            settings,
            clock,
            database,
            accounts,
            tokens,
            ledger,
            await _signing_key(database, clock),
            lambda: verify_postgres(database),
            lambda: ledger.fault,
            for_serving=False,
        )


async def _open(database: "PostgresDatabase") -> None:
    """Raises `StartError`, also where the role lacks what it needs to serve."""
    from tollway.database.rights import complaints, shown

    await database.open()
    lacks, _ = await complaints(database)
    if lacks:
        await database.close()
        raise StartError(f"{next(shown(lacks, []))}.")


async def stored_signing_key(settings: Settings) -> SigningKey:
    """Postgres's, which all replicas sign with. Raises `StartError`."""
    from tollway.database.postgres import PostgresDatabase

    database = PostgresDatabase(settings.server.database.reveal())
    await database.open()
    try:
        return await _signing_key(database, SystemClock())
    finally:
        await database.close()


async def _signing_key(database: "PostgresDatabase", clock: Clock) -> SigningKey:
    """The same for all replicas, so it is where they all find it."""
    stored = "SELECT pem FROM signing_keys ORDER BY created_at, id LIMIT 1"
    rows = await database.fetch(stored)
    if not rows:
        pem = new_key().decode()
        now = clock.now()
        await database.execute(
            (
                "INSERT INTO signing_keys (id, pem, created_at) VALUES (?, ?, ?)",
                (new_id("key", now), pem, int(now * 1000)),
            )
        )
        rows = await database.fetch(stored)
    return SigningKey.of_pem(rows[0][0].encode(), f"in {database.name}")


async def _store(
    settings: Settings,
    clock: Clock,
    database: Database,
    accounts: Accounts,
    tokens: Tokens,
    ledger: Ledger,
    signing_key: SigningKey,
    verified: Callable[[], Awaitable[Sequence[Violation]]],
    fault: Callable[[], str | None],
    *,
    for_serving: bool,
) -> Store:
    catalogue = await Catalogue.load(offers_of(settings), database, clock)
    operations = Operations(
        accounts=accounts,
        tokens=tokens,
        ledger=ledger,
        catalogue=catalogue,
        database=database,
        verify=verified,
        clock=clock,
        genesis=genesis,
        signing_key=signing_key,
        starting_credits=settings.limits.starting_credits,
    )
    new_secret = await operations.ensure_default_account() if for_serving else None
    return Store(
        database,
        accounts,
        tokens,
        ledger,
        catalogue,
        operations,
        clock,
        signing_key,
        fault,
        new_secret,
    )


async def serve_on(
    listener: socket.socket,
    settings: Settings,
    console: Console,
    file: ConfigurationFile | None,
    child: MakeChild | None,
    siblings: Siblings | None = None,
) -> None:
    """`child` runs the embedded model, where one is served; `siblings` are the other processes on
    the port, if there are any."""
    stopping = _stop_on_signals()
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        store = await stack.enter_async_context(open_store(settings, metrics.committed))
        access_log = AccessLog(settings.server.access_log, settings.server.data_dir, metrics)
        await access_log.start()
        stack.push_async_callback(access_log.stop)
        limiter, concurrency = await _rates(settings, store, metrics, stack)
        observer = RequestObserver(metrics, access_log, store.clock)
        watched = _upstreams(settings, child, store.clock)
        gateway = _gateway(settings, store, watched, limiter, concurrency, observer)
        store.operations.watch(gateway.router.upstreams)
        live = _live(settings, store, gateway, watched)
        stack.push_async_callback(live.stop)
        reloader = Reloader(file, settings, live.adopt, metrics)
        _reload_on_hangup(reloader, stopping)
        exposition = _exposition(store, gateway, metrics)
        commands = WithMetrics(WithReload(store.operations, reloader), exposition.page)
        control = ControlServer(settings.server.data_dir, commands)
        await control.start()
        stack.push_async_callback(control.stop)
        server = _http_server(
            settings, store, gateway, limiter, exposition, siblings, observer, stopping
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stack.push_async_callback(server.stop, serving)
        checkpoints = asyncio.create_task(_write_checkpoints(gateway.pipeline, store))
        stack.callback(checkpoints.cancel)
        live.start_checks()
        sweeping = asyncio.create_task(_sweep_idempotency_keys(store))
        stack.callback(sweeping.cancel)
        watching = asyncio.create_task(reloader.watch())
        stack.callback(watching.cancel)
        try:
            await _start_upstreams(watched, serving, stopping)
            _calm_the_collector()
            _keep_large_buffers()
            if not stopping.is_set():
                console.welcome(_welcome(settings, listener, store.new_secret))
            await _first_of(serving, stopping)
            console.stopping(len(gateway.pipeline.running), settings.server.drain_seconds)
            server.wind_down()
            await asyncio.wait([serving], timeout=settings.server.drain_delay_seconds)
        finally:
            server.should_exit = True


# --- the gateway and its doors --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Gateway:
    authenticator: Authenticator
    gate: Gate
    router: Router
    pipeline: Pipeline


def _gateway(
    settings: Settings,
    store: Store,
    watched: Mapping[str, Watched],
    limiter: RateLimiter,
    concurrency: Concurrency,
    observer: RequestObserver,
    *,
    chance: Callable[[], float] = random.random,
) -> _Gateway:
    authenticator = Authenticator(
        store.tokens,
        store.accounts,
        limiter,
        settings.limits.failed_authentications_per_minute,
        store.clock,
    )
    router = Router(watched, store.clock, chance)
    gate = Gate(
        store.catalogue,
        router.count_input_tokens,
        limiter,
        concurrency,
        store.ledger,
        limits_of(settings),
    )
    pipeline = Pipeline(
        authenticator,
        gate,
        router,
        store.ledger,
        observer,
        store.clock,
        store_replies=settings.server.store_replies,
    )
    return _Gateway(authenticator, gate, router, pipeline)


def _live(
    settings: Settings, store: Store, gateway: _Gateway, watched: Mapping[str, Watched]
) -> Live:
    return Live(
        settings,
        catalogue=store.catalogue,
        router=gateway.router,
        gate=gateway.gate,
        authenticator=gateway.authenticator,
        operations=store.operations,
        database=store.database,
        clock=store.clock,
        watched=watched,
        watch=functools.partial(_watch, clock=store.clock),
        check=_check,
    )


def _exposition(store: Store, gateway: _Gateway, metrics: Metrics) -> Exposition:
    return Exposition(
        metrics,
        version=__version__,
        now=store.clock.now,
        monotonic=store.clock.monotonic,
        in_flight=lambda: len(gateway.pipeline.running),
        tasks=lambda: len(asyncio.all_tasks()),
        open_holds=store.ledger.open_holds,
        upstreams=lambda: map(_upstream_now, gateway.router.upstreams()),
        tries_refused=gateway.router.tries_refused,
        database_fault=store.fault,
    )


def _http_server(
    settings: Settings,
    store: Store,
    gateway: _Gateway,
    limiter: RateLimiter,
    exposition: Exposition,
    siblings: Siblings | None,
    observer: RequestObserver,
    stopping: asyncio.Event,
) -> HttpServer:
    trusted = tuple(ip_network(proxy) for proxy in settings.server.trusted_proxies)

    def not_ready() -> list[str]:
        if stopping.is_set():
            return ["the server is stopping"]
        reasons = gateway.router.not_ready(store.catalogue.list(None))
        if (fault := store.fault()) is not None:
            reasons.append(f"the database cannot be written: {fault}")
        return reasons

    app = create_app(
        ApiParts(
            authenticator=gateway.authenticator,
            gate=gateway.gate,
            tokens=store.tokens,
            accounts=store.accounts,
            ledger=store.ledger,
            catalogue=store.catalogue,
            limiter=limiter,
            clock=store.clock,
            observer=observer,
            exposition=exposition,
            signing_key=store.signing_key,
            not_ready=not_ready,
            trusted_proxies=trusted,
            version=__version__,
            siblings=siblings,
        )
    )
    door = ChatDoor(gateway.pipeline, store.clock, trusted)
    config = uvicorn.Config(
        app,
        http=functools.partial(EdgeProtocol, door=door, outbox=Outbox()),  # pyright: ignore[reportArgumentType]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.server.drain_seconds)),
    )
    return HttpServer(config, door)


async def _write_checkpoints(pipeline: Pipeline, store: Store) -> None:
    """What a stream has delivered so far is on disk every two seconds: a crash costs the operator
    no more."""
    while True:
        await asyncio.sleep(CHECKPOINT_SECONDS)
        now = store.clock.now()
        checkpoints = checkpoints_of(pipeline.running.values(), now, CHECKPOINT_SECONDS)
        if checkpoints:
            try:
                await store.ledger.checkpoint(checkpoints)
            except RequestError as error:
                log.error("checkpoints could not be written: %s", error)


async def _sweep_idempotency_keys(store: Store) -> None:
    while True:
        await asyncio.sleep(KEY_SWEEP_SECONDS)
        try:
            await store.ledger.keys.sweep()
        except RequestError as error:
            log.error("old idempotency keys could not be deleted: %s", error)


# --- starting and stopping ------------------------------------------------------------------------


def _stop_on_signals() -> asyncio.Event:
    """The first SIGTERM or Ctrl-C stops gracefully; another ends the process at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            log.error("stopped at once by a second signal")
            os._exit(130)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopping


def _reload_on_hangup(reloader: Reloader, stopping: asyncio.Event) -> None:
    terminal = Terminal()

    def hung_up() -> None:
        if terminal.is_gone():
            stopping.set()
        else:
            reloader.ask()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up)


def find_child(settings: Settings, console: Console) -> MakeChild | None:
    """What runs the embedded model, if one is served; its file is fetched if need be. Raises
    `StartError`."""
    if not settings.serves_embedded:
        return None
    data_dir = settings.server.data_dir
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(data_dir, error) from error
    embedded = _embedded_settings(settings)
    model_file = find_model(embedded, data_dir, progress=console.progress())
    return functools.partial(child_of, embedded, model_file)


def bind(
    settings: Settings, *, shared: bool = False, as_: socket.socket | None = None
) -> socket.socket:
    """Has the port, and does not listen yet: first of all, so that nothing is fetched in vain. A
    `shared` one can be had several times, `as_` another has it."""
    host, port = settings.server.host, settings.server.port
    if as_ is not None:
        port = as_.getsockname()[1]
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartError(
            f"Cannot listen on {host} port {port}: {error.strerror}. "
            "Choose another with --host and --port."
        ) from error
    return listener


async def _start_upstreams(
    watched: Mapping[str, Watched], serving: asyncio.Task[None], stopping: asyncio.Event
) -> None:
    """The socket listens meanwhile: `/healthz` answers at once, `/readyz` when the models are
    there."""
    starting = asyncio.gather(*(one.upstream.start() for one in watched.values()))
    stopped = asyncio.ensure_future(_first_of(serving, stopping))
    await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if starting.done():
        starting.result()
    else:
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting


async def _first_of(serving: asyncio.Task[None], stopping: asyncio.Event) -> None:
    told = asyncio.ensure_future(stopping.wait())
    await asyncio.wait([serving, told], return_when=asyncio.FIRST_COMPLETED)
    told.cancel()


async def _rates(
    settings: Settings, store: Store, metrics: Metrics, stack: AsyncExitStack
) -> tuple[RateLimiter, Concurrency]:
    address = settings.server.rate_store
    if not address.scheme:
        limiter = MemoryRateLimiter(store.clock)
        await _refill_rates(limiter, store)
        return limiter, Concurrency()
    from tollway.rates.valkey import ValkeyRateLimiter  # 9 MB that few need

    shared = ValkeyRateLimiter(address.reveal(), store.clock, metrics)
    await shared.start()
    stack.push_async_callback(shared.stop)
    return shared, shared.concurrency


async def _refill_rates(limiter: MemoryRateLimiter, store: Store) -> None:
    """A restart gives nobody a second minute's worth."""
    now = store.clock.now()
    ages: dict[str, list[float]] = {}
    for account_id, admitted_at in await store.ledger.admissions_since(now - WINDOW_SECONDS):
        ages.setdefault(account_id, []).append(now - admitted_at)
    for account_id, of_account in ages.items():
        limiter.refill(CHAT + account_id, of_account)


# --- from settings to parts -----------------------------------------------------------------------


def _embedded_settings(settings: Settings) -> EmbeddedSettings:
    embedded = settings.embedded
    return EmbeddedSettings(
        model_path=embedded.gguf,
        context_length=embedded.context_length,
        parallel=embedded.parallel,
        threads=embedded.threads,
        queue_length=embedded.queue_length,
        tool_call_opener=embedded.tool_call_opener,
    )


def _upstreams(settings: Settings, child: MakeChild | None, clock: Clock) -> dict[str, Watched]:
    watched = {server.name: _watch(server, clock=clock) for server in settings.upstreams}
    if child is not None:
        connect = functools.partial(OpenAICompatible, EMBEDDED)
        watched[EMBEDDED] = Watched(
            EmbeddedUpstream(EMBEDDED, _embedded_settings(settings), child, connect),
            # It is started again when it dies, and knows itself whether it runs: no circuit.
            Health(EMBEDDED, clock.monotonic, random.random, 0),
            Places(),
        )
    return watched


def _watch(server: UpstreamSettings, *, clock: Clock) -> Watched:
    deadlines = deadlines_of(server)
    return Watched(
        OpenAICompatible(
            server.name,
            server.base_url,
            None if server.api_key is None else server.api_key.reveal(),
            deadlines=deadlines,
            allow_link_local=server.allow_link_local,
            dialect=DIALECTS[server.dialect],
            api_version=server.api_version,
        ),
        Health(server.name, clock.monotonic, random.random, server.circuit_failures),
        Places(server.concurrent_requests, server.queue_length, server.queue_seconds),
        deadlines,
    )


def _check(server: UpstreamSettings, watched: Watched) -> Coroutine[None, None, None] | None:
    upstream = watched.upstream
    if server.health_path is None or not isinstance(upstream, OpenAICompatible):
        return None
    return keep_checking(
        upstream, watched.health, server.health_path, server.health_seconds, random.random
    )


def _upstream_now(watched: Watched) -> UpstreamNow:
    health, places = watched.health, watched.places
    return UpstreamNow(
        watched.name,
        watched.may_be_asked(),
        watched.standing().condition,
        places.in_flight,
        places.waiting,
        watched.latency,
        health.times_opened,
        health.times_set_aside,
    )


def _liveness(accounts: Accounts, tokens: Tokens, clock: Clock) -> Liveness:
    def refusal(account_id: str, token_id: str) -> RequestError | None:
        token = tokens.get(token_id)
        if token is None or not token.is_live(clock.now()):
            return AuthenticationFailed(
                "This token was revoked while the request was on its way.", code="token_revoked"
            )
        if accounts.get(account_id).status != "active":
            return PermissionDenied(
                "This account was frozen while the request was on its way.", code="account_frozen"
            )
        return None

    return refusal


def _welcome(settings: Settings, listener: socket.socket, new_secret: str | None) -> Welcome:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 (told to the operator, not bound)
        host = "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    return Welcome(
        base_url=f"http://{shown}:{port}/api/v1",
        secret=new_secret,
        model=settings.models[0].id,
        data_dir=settings.server.data_dir,
    )


def _calm_the_collector() -> None:
    """What is there by now stays, so the garbage collector need not walk it again and again; and a
    request leaves few cycles behind. A profile showed 5 % of a request's CPU in it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _keep_large_buffers() -> None:
    """A conversation of 1 MiB is copied some six times on its way, and glibc would give each of
    these buffers back to the system and have the next one's pages cleared anew: a quarter of that
    request's CPU (benchmarks, --only large). Now buffers of up to 16 MiB are taken from the heap,
    of which up to 32 MiB stay when they are free. Another C library has no such call."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 16 * 1024 * 1024)
        mallopt(_M_TRIM_THRESHOLD, 32 * 1024 * 1024)


def configure_logging() -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("tollway").setLevel(logging.INFO)
