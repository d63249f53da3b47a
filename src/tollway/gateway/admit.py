"""May this request run? Finds the model, takes a place in flight and in the rate, and holds the
most it can cost.

What is taken is given back in the same function where a later check refuses; once admitted, `leave`
gives back the place in flight, and settlement the hold. A place of the rate counts from then on,
however the request ends.
"""

import contextlib
from collections.abc import Awaitable, Callable

from msgspec import Struct

from tollway.catalogue import Catalogue, Model
from tollway.errors import (
    InvalidRequest,
    RateLimit,
    RateLimited,
    RateWhy,
    Unavailable,
    how_many,
)
from tollway.gateway.cost import cost_of, cost_within, hold_ask, insufficient, output_tokens_max
from tollway.gateway.policy import ignored_fields, require_allowed
from tollway.gateway.types import Admission, Call, Caller, Cost, Standing
from tollway.ledger.base import Ledger, NotEnough
from tollway.rates.base import RateLimiter, RateState, Take
from tollway.rates.concurrency import Concurrency
from tollway.wire.requests import ParsedRequest

CONCURRENCY_RETRY_SECONDS = 1.0
STANDING_SECONDS = 1.0
"""How old the credits may be that a refusal tells: a flood of refusals asks no more often."""

CountInputTokens = Callable[[Model, ParsedRequest, int], Awaitable[int | None] | None]
"""Exact, by the model's own tokenizer; None, at once or when awaited, where that is not cheap."""


class Limits(Struct, frozen=True):
    """The installation's, which an account's own override. Requests a minute, and at a time."""

    requests_per_minute: int
    other_requests_per_minute: int
    concurrent_requests: int


class Gate:
    """A reload replaces `limits`."""

    def __init__(
        self,
        catalogue: Catalogue,
        count_input_tokens: CountInputTokens,
        limiter: RateLimiter,
        concurrency: Concurrency,
        ledger: Ledger,
        limits: Limits,
    ) -> None:
        self._catalogue = catalogue
        self._count_input_tokens = count_input_tokens
        self._limiter = limiter
        self._concurrency = concurrency
        self._ledger = ledger
        self.limits = limits

    async def admit(self, caller: Caller, call: Call, parsed: ParsedRequest) -> Admission:
        model = self._catalogue.find(parsed.request.model, caller.token.models)
        ignored: tuple[str, ...] = ()
        if model.policy is not None or parsed.images or parsed.request.service_tier is not None:
            require_allowed(model, parsed)
        if parsed.unknown or model.supported_parameters is not None:
            ignored = ignored_fields(caller, model, parsed)
        ceiling = None if call.credits_max is None else _credits_max(call.credits_max)
        deadline = None if call.timeout_ms is None else call.began + _seconds(call.timeout_ms)
        concurrency_limit = self._concurrency_limit(caller)
        if not self._concurrency.enter(caller.account.id, concurrency_limit):
            raise _too_many_at_once(concurrency_limit)
        taken: list[tuple[str, float]] = []
        # As long as nothing was awaited since the caller was authenticated, it may pay still; after
        # that the ledger looks again.
        is_caller_current = call.idempotency_key is None
        try:
            rate_limit = self._rate_limit(caller)
            take = self._limiter.take_at_once(caller.rate_key, rate_limit)
            if take is None:
                is_caller_current = False
                take = await self._limiter.take(caller.rate_key, rate_limit)
            if not take.admitted:
                raise self._refused_by_rate(caller, take)
            taken.append((caller.rate_key, take.admitted_at))
            rate = take.state
            if caller.token.requests_per_minute is not None:
                is_caller_current = False
                token_take = await self._take_token_rate(caller, caller.token.requests_per_minute)
                taken.append((_token_rate_key(caller), token_take.admitted_at))
                rate = _tighter(rate, token_take.state)
            output_tokens = output_tokens_max(model, parsed.request)
            counting = self._count_input_tokens(model, parsed, output_tokens)
            counted = None
            if counting is not None:
                is_caller_current = False
                counted = await counting
            cost = cost_of(model, parsed, output_tokens, counted)
            ask = hold_ask(caller, call, model, cost, ceiling)
            try:
                hold = self._ledger.hold_at_once(ask) if is_caller_current else None
                if hold is None:
                    hold = await self._ledger.hold(ask)
            except NotEnough as refused:
                raise insufficient(model, cost, ask.amount_min, refused.why) from None
            if hold.amount != cost.credits_max:
                cost = cost_within(hold, cost, model)
        except BaseException:
            self._concurrency.leave(caller.account.id)
            for key, admitted_at in taken:
                await self._limiter.give_back(key, admitted_at)
            raise
        return Admission(call, caller, model, parsed, cost, hold, rate, ignored, deadline)

    def leave(self, admission: Admission) -> None:
        self._concurrency.leave(admission.caller.account.id)

    async def standing(self, caller: Caller) -> Standing:
        rate = await self._limiter.state(caller.rate_key, self._rate_limit(caller))
        if (limit := caller.token.requests_per_minute) is not None:
            rate = _tighter(rate, await self._limiter.state(_token_rate_key(caller), limit))
        return Standing(rate, await self.credits_available(caller))

    async def credits_available(self, caller: Caller) -> int:
        """The account's, for a reply's headers; as they were known last where the ledger cannot be
        asked."""
        with contextlib.suppress(Unavailable):
            await self._ledger.refresh(caller.account.id, older_than_seconds=STANDING_SECONDS)
        return self._ledger.available(caller.account.id)

    async def cost(self, model: Model, parsed: ParsedRequest) -> Cost:
        """The most it could cost. Raises `InvalidRequest` where the input is known not to fit the
        model's context."""
        output_tokens = output_tokens_max(model, parsed.request)
        counting = self._count_input_tokens(model, parsed, output_tokens)
        counted = None if counting is None else await counting
        return cost_of(model, parsed, output_tokens, counted)

    def _concurrency_limit(self, caller: Caller) -> int:
        limit = caller.account.concurrent_requests
        return self.limits.concurrent_requests if limit is None else limit

    def _refused_by_rate(self, caller: Caller, take: Take) -> RateLimited:
        if take.crowded:
            return _too_many_at_once(self._concurrency_limit(caller))
        return _too_many_a_minute("account", "requests_per_minute", take.state)

    async def _take_token_rate(self, caller: Caller, limit: int) -> Take:
        """The token's own, beside the account's. Raises `RateLimited`."""
        take = await self._limiter.take(_token_rate_key(caller), limit)
        if not take.admitted:
            raise _too_many_a_minute("token", "token_requests_per_minute", take.state)
        return take

    def _rate_limit(self, caller: Caller) -> int:
        limit = caller.account.requests_per_minute
        return self.limits.requests_per_minute if limit is None else limit


def _token_rate_key(caller: Caller) -> str:
    return "token:" + caller.token.id


def _tighter(account_rate: RateState, token_rate: RateState) -> RateState:
    return min(account_rate, token_rate, key=lambda state: state.remaining)


def _credits_max(header: bytes) -> int:
    if not (header.isdigit() and len(header) <= 15):
        raise InvalidRequest(
            "The header X-Credits-Max must be a whole number of credits, for example 250."
        )
    return int(header)


def _seconds(header: bytes) -> float:
    if not (header.isdigit() and len(header) <= 15 and int(header)):
        raise InvalidRequest(
            "The header X-Tollway-Timeout-Ms must be a whole number of milliseconds, at least 1, "
            "for example 30000."
        )
    return int(header) / 1000


def _too_many_at_once(limit: int) -> RateLimited:
    return RateLimited(
        f"This account has {how_many(limit, 'request')} running, its limit. Wait until one "
        "of them ends.",
        RateWhy("concurrent_requests", limit, CONCURRENCY_RETRY_SECONDS),
    )


def _too_many_a_minute(whose: str, limit: RateLimit, state: RateState) -> RateLimited:
    return RateLimited(
        f"This {whose} may make {how_many(state.limit, 'request')} in any 60 s. The next "
        f"place is free in {state.reset_seconds:.1f} s.",
        RateWhy(limit, state.limit, state.reset_seconds),
    )
