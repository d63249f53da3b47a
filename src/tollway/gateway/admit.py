"""May this request run? Finds the model, takes a place in flight and in the rate, and holds the
most it can cost.

What is taken is given back in the same function where a later check refuses; once admitted, `leave`
gives back the place in flight, and settlement the hold. A place of the rate counts from then on,
however the request ends.
"""

import contextlib
from collections.abc import Awaitable, Callable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from tollway.catalogue import Catalogue, Model
from tollway.errors import (
    CreditsLimit,
    CreditsWhy,
    InsufficientCredits,
    InvalidRequest,
    RateLimit,
    RateLimited,
    RateWhy,
    Unavailable,
    how_many,
)
from tollway.gateway.policy import images_bound, images_tokens, require_allowed
from tollway.gateway.prompt import request_bound, text_tokens_bound
from tollway.gateway.types import Admission, Call, Caller, Cost, Standing
from tollway.ledger.base import Hold, HoldAsk, Ledger, NotEnough
from tollway.pricing import (
    BYTES_PER_TOKEN,
    OUTPUT_TOKENS_WORTH_STARTING,
    affordable_output_tokens,
    charge,
    tokens_of_text,
)
from tollway.rates.base import RateLimiter, RateState, Take
from tollway.rates.concurrency import Concurrency
from tollway.wire.chat import ChatRequest
from tollway.wire.requests import OPTIONAL_FIELDS, ParsedRequest

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
        if model.policy is not None or parsed.images:
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
            output_tokens = _output_tokens(model, parsed.request)
            counting = self._count_input_tokens(model, parsed, output_tokens)
            counted = None
            if counting is not None:
                is_caller_current = False
                counted = await counting
            cost = _cost(model, parsed, output_tokens, counted)
            ask = _hold_ask(caller, call, model, cost, ceiling)
            try:
                hold = self._ledger.hold_at_once(ask) if is_caller_current else None
                if hold is None:
                    hold = await self._ledger.hold(ask)
            except NotEnough as refused:
                raise _insufficient(model, cost, ask.amount_min, refused.why) from None
            if hold.amount != cost.credits_max:
                cost = _cost_within(hold, cost, model)
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
        with contextlib.suppress(Unavailable):  # it is told as it was known last
            await self._ledger.refresh(caller.account.id, older_than_seconds=STANDING_SECONDS)
        return Standing(rate, self._ledger.available(caller.account.id))

    async def cost(self, model: Model, parsed: ParsedRequest) -> Cost:
        """The most it could cost. Raises `InvalidRequest` where the input is known not to fit the
        model's context."""
        output_tokens = _output_tokens(model, parsed.request)
        counting = self._count_input_tokens(model, parsed, output_tokens)
        counted = None if counting is None else await counting
        return _cost(model, parsed, output_tokens, counted)

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


def _output_tokens(model: Model, request: ChatRequest) -> int:
    """The most that each choice of the reply may have."""
    wanted = request.output_tokens_wanted()
    if wanted is None:
        wanted = model.default_max_tokens
    most = model.max_output_tokens
    return wanted if wanted < most else most


def _cost(model: Model, parsed: ParsedRequest, output_tokens: int, counted: int | None) -> Cost:
    request = parsed.request
    if counted is None:
        if parsed.text_bytes is not None:
            input_tokens = text_tokens_bound(len(request.messages), parsed.text_bytes)
            assumed = -(-parsed.text_bytes // BYTES_PER_TOKEN)
        else:
            bound = request_bound(parsed)
            input_tokens = bound.tokens + images_bound(model, parsed)
            assumed = _input_tokens_assumed(model, parsed, bound.text_bytes)
    else:
        input_tokens = assumed = counted
        if counted >= model.context_length:
            raise InvalidRequest(
                f"The messages have {counted} tokens and {model.id} has a context of "
                f"{model.context_length}, which the reply must fit too. Send less.",
                code="context_length_exceeded",
                param="messages",
            )
        output_tokens = min(output_tokens, model.context_length - counted)
    choices = 1 if request.n is None else request.n
    credits = charge(model.price_max, input_tokens, choices * output_tokens)
    is_length_named = request.output_tokens_wanted() is not None
    return Cost(input_tokens, assumed, output_tokens, choices, credits, is_length_named)


def _hold_ask(caller: Caller, call: Call, model: Model, cost: Cost, ceiling: int | None) -> HoldAsk:
    """Where the client named no length, what is available is enough if it buys 16 tokens: the
    length follows it."""
    credits_max = credits_min = cost.credits_max
    if not cost.is_length_named:
        output_tokens_min = min(cost.output_tokens_max, OUTPUT_TOKENS_WORTH_STARTING)
        credits_min = charge(
            model.price_max, cost.input_tokens_max, cost.choices * output_tokens_min
        )
    if ceiling is not None and credits_max > ceiling:
        if credits_min > ceiling:
            why = CreditsWhy("credits_max", ceiling, 0, ceiling)
            raise _insufficient(model, cost, credits_min, why)
        credits_max = ceiling
    return HoldAsk(
        call.request_id,
        caller.account.id,
        caller.token.id,
        model.price.id,
        credits_max,
        credits_min,
        caller.token.spend_cap,
        call.now,
    )


def _input_tokens_assumed(model: Model, parsed: ParsedRequest, text_bytes: int) -> int:
    """Of text and images: the rest of the bound is room for a template."""
    image_tokens = images_tokens(model, parsed)
    return image_tokens + tokens_of_text(text_bytes + images_bound(model, parsed) - image_tokens)


def _cost_within(hold: Hold, cost: Cost, model: Model) -> Cost:
    """With fewer output tokens, where the hold is smaller than the most it could cost."""
    output_tokens = affordable_output_tokens(
        model.price_max, hold.amount, cost.input_tokens_max, cost.choices
    )
    return replace(cost, output_tokens_max=output_tokens, credits_max=hold.amount)


def ignored_fields(caller: Caller, model: Model, parsed: ParsedRequest) -> tuple[str, ...]:
    """What the model is not sent. Raises `InvalidRequest` for a token that is strict about it."""
    ignored = parsed.unknown
    if (supported := model.supported_parameters) is not None:
        ignored += tuple(f for f in parsed.fields if f in OPTIONAL_FIELDS and f not in supported)
    if ignored and caller.token.strict:
        raise InvalidRequest(
            f"This token is strict, and {ignored[0]:.100} is not supported by {model.id}. "
            "Leave it out.",
            code="unsupported_parameter",
            param=ignored[0][:100],
        )
    return ignored


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


_LIMITS_AND_REMEDIES: Mapping[CreditsLimit, tuple[str, str]] = {
    "balance": ("the account has {available} available", "add credits"),
    "spend_cap": (
        "the token's spend cap of {value} leaves {available}",
        "use a token with a higher cap",
    ),
    "credits_max": ("X-Credits-Max allows {available}", "raise X-Credits-Max"),
}


def _insufficient(model: Model, cost: Cost, required: int, why: CreditsWhy) -> InsufficientCredits:
    output_tokens = affordable_output_tokens(
        model.price_max, max(0, why.available), cost.input_tokens_max, cost.choices
    )
    affordable = output_tokens if output_tokens >= OUTPUT_TOKENS_WORTH_STARTING else None
    limit, remedy = _LIMITS_AND_REMEDIES[why.limit]
    if affordable is not None:
        remedy = f"lower max_tokens to {affordable} or {remedy}"
    held = f", while requests in flight hold {why.held}" if why.held else ""
    return InsufficientCredits(
        f"This request could cost up to {how_many(required, 'credit')} and "
        f"{limit.format(value=why.value, available=why.available)}{held}. "
        f"{remedy[0].upper()}{remedy[1:]}.",
        required=required,
        affordable_output_tokens=affordable,
        why=why,
    )
