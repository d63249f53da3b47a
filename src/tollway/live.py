"""What a running server offers by its configuration, and the one place where another takes effect.

All that may fail comes first: upstreams are made, prices are written. Then everything changes in
one step of the event loop, between two requests and never within one. A request that has begun
keeps what it was admitted with; what it does not need to remember, such as a limit, it reads once,
where it is checked. So no request pays anything for being able to change this.

An upstream that is the same as before keeps its connections, its places and its health. One that is
gone, or is another by now, serves the requests that it has, and then its connections close.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping

import msgspec

from tollway import settings as configured
from tollway.api.admin.operations import Operations
from tollway.catalogue import Catalogue, ModelOffer, Policy, Serving
from tollway.clock import Clock
from tollway.database.base import Database
from tollway.deadlines import Deadlines
from tollway.errors import ConfigurationError
from tollway.gateway.admit import Gate, Limits
from tollway.gateway.authenticate import Authenticator
from tollway.gateway.route import Router
from tollway.settings import EMBEDDED, Settings
from tollway.upstreams.dialects import DIALECTS, GENERIC, understood_by
from tollway.upstreams.watched import Watched

RETIRE_LOOK_SECONDS = 0.5

log = logging.getLogger("tollway.live")


class Live:
    """`watched` are the upstreams of now by name, `watch` makes another, and `check` is what keeps
    asking one whether it is well, where that is wanted. All of them are `stop`'s to stop."""

    def __init__(
        self,
        settings: Settings,
        *,
        catalogue: Catalogue,
        router: Router,
        gate: Gate,
        authenticator: Authenticator,
        operations: Operations,
        database: Database,
        clock: Clock,
        watched: Mapping[str, Watched],
        watch: Callable[[configured.Upstream], Watched],
        check: Callable[[configured.Upstream, Watched], Coroutine[None, None, None] | None],
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._router = router
        self._gate = gate
        self._authenticator = authenticator
        self._operations = operations
        self._database = database
        self._clock = clock
        self._watched = dict(watched)
        self._watch = watch
        self._check = check
        self._checks: dict[Watched, asyncio.Task[None]] = {}
        self._retiring: dict[asyncio.Task[None], Watched] = {}

    def start_checks(self) -> None:
        """Of those that are not checked yet; the checks of those that are gone end."""
        for one in self._checks.keys() - self._watched.values():
            self._checks.pop(one).cancel()
        for server in self._settings.upstreams:
            one = self._watched[server.name]
            if one not in self._checks and (check := self._check(server, one)) is not None:
                self._checks[one] = asyncio.create_task(check)

    async def adopt(self, settings: Settings) -> None:
        """Whole, or raises a `TollwayError` and leaves all as it is. One at a time."""
        watched = self._watched_for(settings)
        fresh = [one for name, one in watched.items() if self._watched.get(name) is not one]
        try:
            for one in fresh:
                await one.upstream.start()
            catalogue = await Catalogue.load(offers_of(settings), self._database, self._clock)
        except BaseException:
            for one in fresh:
                await one.upstream.stop()
            raise
        gone = [one for name, one in self._watched.items() if watched.get(name) is not one]
        # No await from here on: no request comes in between.
        self._catalogue.put(catalogue)
        self._router.put(watched, self._catalogue.list(None))
        self._gate.limits = limits_of(settings)
        self._authenticator.failures_per_minute = settings.limits.failed_authentications_per_minute
        self._operations.starting_credits = settings.limits.starting_credits
        self._settings, self._watched = settings, watched
        self.start_checks()
        for one in gone:
            task = asyncio.create_task(self._retire(one))
            self._retiring[task] = one
            task.add_done_callback(self._retiring.pop)

    async def stop(self) -> None:
        leaving = [*self._retiring.values(), *self._watched.values()]
        for task in (*self._retiring, *self._checks.values()):
            task.cancel()
        for one in leaving:
            await one.upstream.stop()

    def _watched_for(self, settings: Settings) -> dict[str, Watched]:
        before = {server.name: server for server in self._settings.upstreams}
        watched = {
            server.name: self._watched[server.name]
            if before.get(server.name) == server
            else self._watch(server)
            for server in settings.upstreams
        }
        if settings.serves_embedded:
            if EMBEDDED not in self._watched:
                raise ConfigurationError(
                    "models: one of them is served by the embedded model, which starts with the "
                    "server alone. Restart the server."
                )
            watched[EMBEDDED] = self._watched[EMBEDDED]
        return watched

    async def _retire(self, one: Watched) -> None:
        """A request that was being admitted may still come: its connection is then made for it.
        Whoever waits for a place waits for one that is in flight."""
        await asyncio.sleep(RETIRE_LOOK_SECONDS)
        while one.places.in_flight:  # noqa: ASYNC110 (no cost for requests)
            await asyncio.sleep(RETIRE_LOOK_SECONDS)
        await one.upstream.stop()
        log.info("upstream %s, which was taken out or changed, runs nothing any more", one.name)


# --- from settings to values ----------------------------------------------------------------------


def offers_of(settings: Settings) -> list[ModelOffer]:
    dialects = {server.name: DIALECTS[server.dialect] for server in settings.upstreams}
    deadlines = {server.name: deadlines_of(server) for server in settings.upstreams}
    return [
        ModelOffer(
            id=model.id,
            tier=model.tier,
            input_credits_per_million=model.prompt_rate,
            output_credits_per_million=model.completion_rate,
            context_length=model.context_length,
            max_output_tokens=model.max_output_tokens,
            default_max_tokens=model.default_max_tokens,
            supported_parameters=_supported(
                model.supported_parameters,
                understood_by(dialects.get(by.upstream, GENERIC) for by in model.upstreams),
            ),
            confidential=model.confidential,
            servings=tuple(
                Serving(
                    by.upstream, by.model, by.weight, by.priority, _own_deadlines(by, deadlines)
                )
                for by in model.upstreams
            ),
            cached_credits_per_million=model.cached_prompt_rate,
            reasoning_credits_per_million=model.reasoning_rate,
            sticky=model.sticky,
            policy=_policy(model),
        )
        for model in settings.models
    ]


def _policy(model: configured.Model) -> Policy | None:
    """None for a model that asks for nothing more: its requests are not looked through for it."""
    # Who names the field has thought of what it costs.
    dearer_tiers = "service_tier" in (model.supported_parameters or ())
    asks = model.denied_parameters or model.defaults or model.image_tokens is not None
    if not (asks or dearer_tiers):
        return None
    return Policy(
        denied=model.denied_parameters,
        defaults=model.defaults,
        image_tokens=model.image_tokens,
        image_bytes_max=model.max_image_bytes,
        dearer_tiers=dearer_tiers,
    )


def _supported(
    named: frozenset[str] | None, understood: frozenset[str] | None
) -> frozenset[str] | None:
    """Of the fields that the operator named, those that some upstream understands; None: all."""
    if named is None or understood is None:
        return understood if named is None else named
    return named & understood


def limits_of(settings: Settings) -> Limits:
    return Limits(
        settings.limits.requests_per_minute,
        settings.limits.other_requests_per_minute,
        settings.limits.concurrent_requests,
    )


def deadlines_of(server: configured.Upstream) -> Deadlines:
    return Deadlines(
        server.connect_seconds,
        server.first_byte_seconds,
        server.between_chunks_seconds,
        server.total_seconds,
    )


def _own_deadlines(by: configured.ServedBy, upstreams: Mapping[str, Deadlines]) -> Deadlines | None:
    """What this model has in place of the upstream's; None where it has nothing of its own."""
    own = (by.connect_seconds, by.first_byte_seconds, by.between_chunks_seconds, by.total_seconds)
    if own == (None, None, None, None):
        return None
    theirs = msgspec.structs.astuple(upstreams.get(by.upstream, Deadlines()))
    return Deadlines(*(one if it is None else it for it, one in zip(own, theirs, strict=True)))
