"""Price and usage -> charge, and the most that a request could cost. Arithmetic only: whole
credits, one rounding, up."""

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from tollway.catalogue import Price
from tollway.ledger.base import UsageSource
from tollway.wire.text import texts_bytes

TOKENS_PER_PRICE_UNIT = 1_000_000
OUTPUT_TOKENS_WORTH_STARTING = 16
"""Fewer output tokens than these are not worth a request: it is refused instead of being cut to
them."""

BYTES_PER_TOKEN = 4
"""Of text whose tokens nobody counted."""

_BYTES_PER_MESSAGE = 16
_BYTES_PER_REQUEST = 256

_encode = msgspec.json.Encoder().encode


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


def text_tokens_bound(messages: int, text_bytes: int) -> int:
    """`input_tokens_bound` of so many messages that have nothing but text, of so many bytes."""
    return _BYTES_PER_REQUEST + messages * _BYTES_PER_MESSAGE + text_bytes


def input_tokens_bound(messages: Iterable[object], *others: object) -> int:
    """The most tokens that any byte-level tokenizer makes of these: their UTF-8 bytes, and some for
    the template.

    A tokenizer may normalise to NFKC first, which can make text longer, so the larger form
    counts. Templates write tools and calls anew, with spaces or in lines, so what lays JSON out
    counts as well.
    """
    total = _BYTES_PER_REQUEST
    texts: list[str] = []
    for message in messages:
        total += _BYTES_PER_MESSAGE
        content = getattr(message, "content", None)
        calls = getattr(message, "tool_calls", None)
        if not isinstance(content, str) or calls is not None:
            texts.append(_encode(message).decode())
            if calls is not None:
                total += _layout_tokens(_encode(calls))
            continue
        texts.append(content)
        for name in _TEXTS_BESIDE:
            if (text := getattr(message, name, None)) is not None:
                texts.append(text)
    for other in others:
        if other is not None:
            written = _encode(other)
            texts.append(written.decode())
            total += _layout_tokens(written)
    return total + texts_bytes(texts)


_TEXTS_BESIDE = ("name", "refusal", "tool_call_id")
"""What some templates write of a message beside its content."""


def _layout_tokens(json: bytes) -> int:
    """At each comma, colon and bracket a template may put a space, or a line and its indentation:
    two tokens, whatever the depth (Llama 3.1 indents tools by 4)."""
    return 2 * (len(json) - len(json.translate(None, b",:{}[]")))
