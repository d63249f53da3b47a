"""Price and usage -> charge, and the most that a request could cost. Arithmetic only: whole
credits, one rounding, up."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from tollway.catalogue import Price
from tollway.ledger.base import UsageSource
from tollway.wire.chat import AssistantMessage, ToolMessage
from tollway.wire.text import text_bytes, texts_bytes

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
    """`prompt_bound` of so many messages that have nothing but text, of so many bytes."""
    return _BYTES_PER_REQUEST + messages * _BYTES_PER_MESSAGE + text_bytes


class PromptBound(NamedTuple):
    """The most tokens of a prompt: a token for each of its `text_bytes`, and what the model's
    template adds."""

    text_bytes: int
    template_tokens: int

    @property
    def tokens(self) -> int:
        return self.text_bytes + self.template_tokens


def prompt_bound(messages: Iterable[object], *others: object) -> PromptBound:
    """The most tokens that any byte-level tokenizer makes of these: their UTF-8 bytes, and some for
    the template.

    A tokenizer may normalise to NFKC first, which can make text longer, so the larger form
    counts. Templates write tools, calls and their results anew as JSON, which counts as well.
    """
    template_tokens = _BYTES_PER_REQUEST
    longest_name = 0
    texts: list[str] = []
    # Each of these is written at once: one by one, an agent's hundreds took three times as long.
    structured: list[object] = []
    calls: list[object] = []
    results: list[object] = []
    for message in messages:
        template_tokens += _BYTES_PER_MESSAGE
        content = getattr(message, "content", None)
        calls_of_it = getattr(message, "tool_calls", None)
        if type(message) is ToolMessage:
            # gpt-oss writes the name of what was called before each result.
            template_tokens += longest_name
            results.append(content)
            if type(content) is str:
                texts += content, message.tool_call_id
                continue
        if type(content) is not str or calls_of_it is not None:
            structured.append(message)
            if calls_of_it is not None:
                calls.append(calls_of_it)
                longest_name = max(longest_name, _longest_name(message))
            continue
        texts.append(content)
        for name in _TEXTS_BESIDE:
            if (text := getattr(message, name, None)) is not None:
                texts.append(text)
    if structured:
        texts.append(_written(structured).decode())
    if calls:
        template_tokens += _layout_tokens(_written(calls)) - 2 * _commas(calls)
    if results:
        template_tokens += _tokens_as_json(results)
    for other in others:
        if other is not None:
            written = _encode(other)
            texts.append(written.decode())
            template_tokens += _layout_tokens(written)
    return PromptBound(texts_bytes(texts) - _commas(structured), template_tokens)


_TEXTS_BESIDE = ("name", "refusal", "reasoning_content")
"""What some templates write of a message beside its content, and of a result the call's id."""


def _longest_name(message: object) -> int:
    """In bytes, of what it calls."""
    calls = message.tool_calls if type(message) is AssistantMessage else None
    longest = 0
    for call in calls or ():
        size = text_bytes(call.function.name)
        if size > longest:
            longest = size
    return longest


def _layout_tokens(json: bytes) -> int:
    """At each comma, colon and bracket a template may put a space, or a line and its indentation:
    two tokens, whatever the depth (Llama 3.1 indents tools by 4)."""
    return 2 * _count(json, b",:{}[]") + _escape_tokens(json)


def _tokens_as_json(results: Sequence[object]) -> int:
    """What their contents are longer by when a template writes them as JSON; those in parts are
    counted as JSON anyway."""
    texts = [content for content in results if type(content) is str]
    written = _written(results)
    of_texts = written if len(texts) == len(results) else _written(texts)
    came = sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
    longer = len(of_texts) - _commas(texts) - came
    return longer + _escape_tokens(written)


def _escape_tokens(json: bytes) -> int:
    """TGI's templates write each of these as an escape of six letters."""
    # `translate`, as below, takes 0.6 ms a MiB; `replace` 0.1, and 13 ns for each that is there.
    return 5 * sum(len(json) - len(json.replace(sign, b"")) for sign in (b"<", b">", b"&", b"'"))


def _count(json: bytes, signs: bytes) -> int:
    return len(json) - len(json.translate(None, signs))


def _written(items: Sequence[object]) -> bytes:
    """As JSON, with a comma between each and the next."""
    return _encode(items)[1:-1]


def _commas(items: Sequence[object]) -> int:
    """That are in `_written`, and are no part of any item."""
    return max(0, len(items) - 1)
