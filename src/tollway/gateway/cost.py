"""The most that a request can cost, how much of that must be held, and what is said to who cannot
pay it. Nothing here looks anything up: what was counted and what is available is given."""

from collections.abc import Mapping

from msgspec.structs import replace

from tollway.catalogue import Model
from tollway.errors import (
    CreditsLimit,
    CreditsWhy,
    InsufficientCredits,
    context_exceeded,
    how_many,
)
from tollway.gateway.policy import images_bound, images_tokens
from tollway.gateway.prompt import request_bound, text_tokens_bound
from tollway.gateway.types import Call, Caller, Cost
from tollway.ledger.base import Hold, HoldAsk
from tollway.pricing import (
    BYTES_PER_TOKEN,
    OUTPUT_TOKENS_WORTH_STARTING,
    affordable_output_tokens,
    charge,
    tokens_of_text,
)
from tollway.wire.chat import ChatRequest
from tollway.wire.requests import ParsedRequest


def output_tokens_max(model: Model, request: ChatRequest) -> int:
    """The most that each choice of the reply may have."""
    wanted = request.output_tokens_wanted()
    if wanted is None:
        wanted = model.default_max_tokens
    most = model.max_output_tokens
    return wanted if wanted < most else most


def cost_of(model: Model, parsed: ParsedRequest, output_tokens: int, counted: int | None) -> Cost:
    """Raises `InvalidRequest` where the input was counted and does not fit the model's context."""
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
            raise context_exceeded(model.context_length, counted)
        output_tokens = min(output_tokens, model.context_length - counted)
    choices = 1 if request.n is None else request.n
    credits = charge(model.price_max, input_tokens, choices * output_tokens)
    is_length_named = request.output_tokens_wanted() is not None
    return Cost(input_tokens, assumed, output_tokens, choices, credits, is_length_named)


def _input_tokens_assumed(model: Model, parsed: ParsedRequest, text_bytes: int) -> int:
    """Of text and images: the rest of the bound is room for a template."""
    image_tokens = images_tokens(model, parsed)
    return image_tokens + tokens_of_text(text_bytes + images_bound(model, parsed) - image_tokens)


def hold_ask(caller: Caller, call: Call, model: Model, cost: Cost, ceiling: int | None) -> HoldAsk:
    """Where the client named no length, what is available is enough if it buys 16 tokens: the
    length follows it. Raises `InsufficientCredits` where `ceiling` is less than that."""
    credits_max = credits_min = cost.credits_max
    if not cost.is_length_named:
        output_tokens_min = min(cost.output_tokens_max, OUTPUT_TOKENS_WORTH_STARTING)
        credits_min = charge(
            model.price_max, cost.input_tokens_max, cost.choices * output_tokens_min
        )
    if ceiling is not None and credits_max > ceiling:
        if credits_min > ceiling:
            why = CreditsWhy("credits_max", ceiling, 0, ceiling)
            raise insufficient(model, cost, credits_min, why)
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


def cost_within(hold: Hold, cost: Cost, model: Model) -> Cost:
    """With fewer output tokens, where the hold is smaller than the most it could cost."""
    output_tokens = affordable_output_tokens(
        model.price_max, hold.amount, cost.input_tokens_max, cost.choices
    )
    return replace(cost, output_tokens_max=output_tokens, credits_max=hold.amount)


_LIMITS_AND_REMEDIES: Mapping[CreditsLimit, tuple[str, str]] = {
    "balance": ("the account has {available} available", "add credits"),
    "spend_cap": (
        "the token's spend cap of {value} leaves {available}",
        "use a token with a higher cap",
    ),
    "credits_max": ("X-Credits-Max allows {available}", "raise X-Credits-Max"),
}


def insufficient(model: Model, cost: Cost, required: int, why: CreditsWhy) -> InsufficientCredits:
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
