"""Puts the program together, starts it and stops it. Which upstreams and which rate store there are
is chosen here; the database and its ledger are chosen in `store.py`.

`serve` opens what is kept (`store.py`), adds upstreams, the gateway and its doors, runs until it is
told to stop, lets what runs come to its end, and closes all in reverse.
"""

import asyncio
import contextlib
import functools
import logging
import random
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import ip_network

import uvicorn
import uvloop

from tollway import __version__
from tollway.api.access_log import AccessLog
from tollway.api.admin.control import ControlServer
from tollway.api.completions import ChatDoor
from tollway.api.edge import EdgeProtocol
from tollway.api.idleness import Idleness
from tollway.api.observer import RequestObserver
from tollway.api.operation import ApiParts
from tollway.api.routes import create_app
from tollway.api.server import HttpServer
from tollway.api.siblings import Siblings, WithMetrics
from tollway.clock import Clock
from tollway.console import Console, Welcome
from tollway.database.data_directory import unusable
from tollway.errors import RequestError
from tollway.gateway.admit import Gate
from tollway.gateway.authenticate import Authenticator
from tollway.gateway.pipeline import Pipeline
from tollway.gateway.route import Router
from tollway.gateway.settle import checkpoints_of
from tollway.live import Live, deadlines_of, limits_of
from tollway.metrics.counters import Metrics
from tollway.metrics.exposition import Exposition, UpstreamNow
from tollway.outbox import Outbox
from tollway.process import (
    bind,
    calm_the_collector,
    configure_logging,
    keep_large_buffers,
    refuse_long_numbers,
    stop_on_signals,
)
from tollway.rates.base import CHAT, WINDOW_SECONDS, RateLimiter
from tollway.rates.concurrency import Concurrency
from tollway.rates.memory import MemoryRateLimiter
from tollway.reload import ConfigurationFile, Reloader, Terminal, WithReload
from tollway.settings import EMBEDDED, Settings
from tollway.settings import Upstream as UpstreamSettings
from tollway.store import Store, open_store
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
from tollway.upstreams.watched import Watched

CHECKPOINT_SECONDS = 1.0
KEY_SWEEP_SECONDS = 60.0

log = logging.getLogger("tollway")


def serve(settings: Settings, console: Console, file: ConfigurationFile | None) -> None:
    """Runs until SIGTERM or Ctrl-C. `file` is what the settings came from, if from one, and is read
    again when it changes. Raises `StartError` and `ConfigurationError`."""
    configure_logging()
    for warning in settings.warnings:
        log.warning("%s", warning)
    with contextlib.closing(bind(settings)) as listener:
        # Before there is an event loop: a fetch that is interrupted cleans up after itself.
        child = find_child(settings, console)
        uvloop.run(_serve_until_signals(listener, settings, console, file, child))


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


async def _serve_until_signals(
    listener: socket.socket,
    settings: Settings,
    console: Console,
    file: ConfigurationFile | None,
    child: MakeChild | None,
) -> None:
    await serve_on(listener, settings, console, file, child, stop_on_signals())


async def serve_on(
    listener: socket.socket,
    settings: Settings,
    console: Console,
    file: ConfigurationFile | None,
    child: MakeChild | None,
    stopping: asyncio.Event,
    siblings: Siblings | None = None,
) -> None:
    """Until it is `stopping`. `child` runs the embedded model, where one is served; `siblings` are
    the other processes on the port, if there are any."""
    _on_hangup(stopping, _nothing_yet)
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        store = await stack.enter_async_context(open_store(settings, metrics.committed))
        access_log = AccessLog(settings.server.access_log, settings.server.data_dir, metrics)
        await access_log.start()
        stack.push_async_callback(access_log.stop)
        limiter, concurrency = await _rates(settings, store, metrics, stack, stopping)
        observer = RequestObserver(metrics, access_log, store.clock)
        watched = _upstreams(settings, child, store.clock)
        gateway = _gateway(settings, store, watched, limiter, concurrency, observer)
        store.operations.watch(gateway.router.upstreams)
        live = _live(settings, store, gateway, watched)
        stack.push_async_callback(live.stop)
        reloader = Reloader(file, settings, live.adopt, metrics)
        _on_hangup(stopping, reloader.ask)
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
            calm_the_collector()
            keep_large_buffers()
            refuse_long_numbers()
            if not stopping.is_set():
                console.welcome(_welcome(settings, listener, store.new_secret))
            await _first_of(serving, stopping)
            console.stopping(len(gateway.pipeline.running), settings.server.drain_seconds)
            server.wind_down()
            await asyncio.wait([serving], timeout=settings.server.drain_delay_seconds)
        finally:
            server.exit()


# --- its parts, in the order they are made --------------------------------------------------------


async def _rates(
    settings: Settings,
    store: Store,
    metrics: Metrics,
    stack: AsyncExitStack,
    stopping: asyncio.Event,
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
    joining = asyncio.create_task(shared.join())
    await _first_of(joining, stopping)
    if not joining.cancel():
        joining.result()
    return shared, shared.concurrency


async def _refill_rates(limiter: MemoryRateLimiter, store: Store) -> None:
    """A restart gives nobody a second minute's worth."""
    now = store.clock.now()
    ages: dict[str, list[float]] = {}
    for account_id, admitted_at in await store.ledger.admissions_since(now - WINDOW_SECONDS):
        ages.setdefault(account_id, []).append(now - admitted_at)
    for account_id, of_account in ages.items():
        limiter.refill(CHAT + account_id, of_account)


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


def _check(server: UpstreamSettings, watched: Watched) -> Coroutine[None, None, None] | None:
    upstream = watched.upstream
    if server.health_path is None or not isinstance(upstream, OpenAICompatible):
        return None
    return keep_checking(
        upstream, watched.health, server.health_path, server.health_seconds, random.random
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
        leased=store.ledger.leased,
        upstreams=lambda: map(_upstream_now, gateway.router.upstreams()),
        tries_refused=gateway.router.tries_refused,
        database_fault=store.fault,
    )


def _upstream_now(watched: Watched) -> UpstreamNow:
    health, places = watched.health, watched.places
    return UpstreamNow(
        watched.name,
        watched.may_be_asked(),
        watched.status().condition,
        places.in_flight,
        places.waiting,
        watched.latency,
        health.times_opened,
        health.times_set_aside,
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
        http=functools.partial(  # pyright: ignore[reportArgumentType]
            EdgeProtocol, door=door, outbox=Outbox(), idleness=Idleness()
        ),
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


# --- what goes on beside the requests -------------------------------------------------------------


async def _write_checkpoints(pipeline: Pipeline, store: Store) -> None:
    """What a stream has delivered so far is on disk every second: a crash costs the operator
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


def _on_hangup(stopping: asyncio.Event, reload: Callable[[], None]) -> None:
    terminal = Terminal()

    def hung_up() -> None:
        if terminal.is_gone():
            stopping.set()
        else:
            reload()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up)


def _nothing_yet() -> None:
    """A start may wait for other replicas. The file is looked at when it serves in any case."""


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


async def _first_of(task: asyncio.Task[None], stopping: asyncio.Event) -> None:
    told = asyncio.ensure_future(stopping.wait())
    await asyncio.wait([task, told], return_when=asyncio.FIRST_COMPLETED)
    told.cancel()


def _welcome(settings: Settings, listener: socket.socket, new_secret: str | None) -> Welcome:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 (told to the operator, not bound)
        host = "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    return Welcome(
        base_url=f"http://{shown}:{port}/api/v1",
        secret=new_secret,
        model=settings.models[0].id,
        models=len(settings.models),
        data_dir=settings.server.data_dir,
    )
