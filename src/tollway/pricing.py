"""Price and usage -> charge, and what credits pay for. Arithmetic only: whole credits, one
rounding, up."""

from msgspec import Struct

from tollway.catalogue import Price
from tollway.ledger.base import UsageSource

TOKENS_PER_PRICE_UNIT = 1_000_000
OUTPUT_TOKENS_WORTH_STARTING = 16
"""Fewer output tokens than these are not worth a request: it is refused instead of being cut to
them."""

BYTES_PER_TOKEN = 4
"""Of text whose tokens nobody counted."""


class Usage(Struct, frozen=True, gc=False):
    """Tokens of one request. Of the input, `cached_tokens` were in the upstream's cache; of the
    output, `reasoning_tokens` were reasoning."""

    input_tokens: int
    output_tokens: int
    source: UsageSource
    cached_tokens: int = 0
    reasoning_tokens: int = 0


NOTHING_USED = Usage(0, 0, "counted")


def charge(
    price: Price,
    input_tokens: int,
    output_tokens: int,
    cached_tokens: int = 0,
    reasoning_tokens: int = 0,
) -> int:
    """Credits for what was used: the exact sum, rounded up once. No tokens cost nothing. Cached
    tokens are among the input's, reasoning tokens among the output's."""
    exact = (
        input_tokens * price.input_credits_per_million
        + output_tokens * price.output_credits_per_million
    )
    if cached_tokens and (rate := price.cached_credits_per_million) is not None:
        exact += cached_tokens * (rate - price.input_credits_per_million)
    if reasoning_tokens and (rate := price.reasoning_credits_per_million) is not None:
        exact += reasoning_tokens * (rate - price.output_credits_per_million)
    return -(-exact // TOKENS_PER_PRICE_UNIT)


def affordable_output_tokens(price: Price, credits: int, input_tokens: int, choices: int) -> int:
    """The longest output, in tokens for each of `choices`, that `credits` surely pay for after the
    input; at least 0. `price` at its dearest."""
    left = credits * TOKENS_PER_PRICE_UNIT - input_tokens * price.input_credits_per_million
    if left < 0:
        return 0
    if price.output_credits_per_million == 0:
        return 2**31
    return left // (price.output_credits_per_million * choices)


def tokens_of_text(text_bytes: int) -> int:
    """What so many bytes are taken for where nobody counted their tokens."""
    return -(-text_bytes // BYTES_PER_TOKEN)
