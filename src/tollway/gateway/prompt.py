"""How many tokens a prompt can have at most, where nobody has its model's tokenizer.

A byte-level tokenizer makes at most a token of each byte. It may normalise to NFKC first, which can
make text longer, so the larger form counts. A model's template adds some for each message, and
writes tools, calls and their results anew as JSON, in more bytes than they came in.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from tollway.wire.chat import AssistantMessage, Message, ToolCall, ToolMessage
from tollway.wire.requests import ParsedRequest
from tollway.wire.text import (
    JsonSize,
    escaped_signs,
    json_size,
    layout_signs,
    text_bytes,
    texts_bytes,
)

_BYTES_PER_MESSAGE = 16
_BYTES_PER_REQUEST = 256

_encode = msgspec.json.Encoder().encode


class PromptBound(NamedTuple):
    """The most tokens of a prompt: a token for each of its `text_bytes`, and what the model's
    template adds."""

    text_bytes: int
    template_tokens: int

    @property
    def tokens(self) -> int:
        return self.text_bytes + self.template_tokens


def text_tokens_bound(messages: int, text_bytes: int) -> int:
    """`prompt_bound` of so many messages that have nothing but text, of so many bytes."""
    return _BYTES_PER_REQUEST + messages * _BYTES_PER_MESSAGE + text_bytes


def request_bound(parsed: ParsedRequest) -> PromptBound:
    """Of all but its images."""
    request = parsed.request
    tools = request.tools if parsed.tools_size is None else parsed.tools_size
    return prompt_bound(
        request.messages, tools, request.response_format, written=parsed.messages_json
    )


def prompt_bound(
    messages: Sequence[Message], *others: object, written: bytes | None = None
) -> PromptBound:
    """Of the `others` one may be a `JsonSize` already. `written` are the messages as JSON, where
    that is at hand and each result is one text."""
    sorted_ = _sort(messages)
    structured = _json_of(sorted_.structured)
    size = texts_bytes([*sorted_.texts, structured.written.decode()]) - structured.between
    tokens = _BYTES_PER_REQUEST + len(messages) * _BYTES_PER_MESSAGE + sorted_.name_tokens
    if sorted_.calls:
        calls = _json_of(sorted_.calls)
        signs = layout_signs(calls.written) - calls.between
        tokens += _template_tokens(signs, escaped_signs(calls.written))
    if sorted_.results:
        if written is None:
            tokens += _tokens_as_json(sorted_.results, sorted_.result_texts)
        else:
            beside = structured, _json_of(sorted_.plain), _json_of(sorted_.ids)
            every = _Json(written, _between(messages))
            tokens += _tokens_as_json_within(every, beside, sorted_.result_texts)
    for other in others:
        if other is not None:
            found = other if type(other) is JsonSize else json_size(_encode(other))
            size += found.text_bytes
            tokens += _template_tokens(found.layout_signs, found.escaped_signs)
    return PromptBound(size, tokens)


class _Sorted(NamedTuple):
    """Messages by how a template may write them, and what of them are plain `texts`. What is of one
    kind is written at once: one by one, an agent's hundreds took three times as long."""

    texts: list[str]
    plain: list[object]
    structured: list[object]
    calls: list[object]
    results: list[object]
    result_texts: list[str]
    ids: list[str]
    name_tokens: int


def _sort(messages: Sequence[Message]) -> _Sorted:
    """Some templates write names, refusals and reasoning beside contents, and results' ids."""
    texts: list[str] = []
    plain: list[object] = []
    structured: list[object] = []
    calls: list[object] = []
    results: list[object] = []
    result_texts: list[str] = []
    ids: list[str] = []
    name_tokens = longest_name = 0
    for message in messages:
        content = message.content
        if type(message) is ToolMessage:
            # gpt-oss writes the name of what was called before each result.
            name_tokens += longest_name
            results.append(content)
            if type(content) is str:
                result_texts.append(content)
                ids.append(message.tool_call_id)
            else:
                structured.append(message)
            continue
        if type(message) is AssistantMessage and message.tool_calls is not None:
            structured.append(message)
            calls.append(message.tool_calls)
            longest_name = max(longest_name, _longest_name(message.tool_calls))
            continue
        if type(content) is not str or (
            type(message) is AssistantMessage
            and (message.reasoning_details is not None or message.extra_content is not None)
        ):
            structured.append(message)
            continue
        plain.append(message)
        texts.append(content)
        if message.name is not None:
            texts.append(message.name)
        if type(message) is AssistantMessage:
            for text in (message.refusal, message.reasoning_content):
                if text is not None:
                    texts.append(text)
    texts += result_texts
    texts += ids
    return _Sorted(texts, plain, structured, calls, results, result_texts, ids, name_tokens)


def _longest_name(calls: Sequence[ToolCall]) -> int:
    """In bytes, of what is called."""
    longest = 0
    for call in calls:
        name = call.function.name
        size = len(name) if name.isascii() else text_bytes(name)
        if size > longest:
            longest = size
    return longest


class _Json(NamedTuple):
    """Some items as an array, of which so many bytes stand `between` them and around."""

    written: bytes
    between: int

    @property
    def item_bytes(self) -> int:
        return len(self.written) - self.between


def _json_of(items: Sequence[object]) -> _Json:
    return _Json(_encode(items), _between(items))


def _between(items: Sequence[object]) -> int:
    return max(2, len(items) + 1)


def _tokens_as_json(results: Sequence[object], texts: Sequence[str]) -> int:
    """What the `texts` among them are longer by when a template writes results as JSON; those in
    parts are counted as JSON anyway."""
    written = _json_of(results)
    of_texts = written if len(texts) == len(results) else _json_of(texts)
    longer = of_texts.item_bytes - _bytes_of(texts)
    return longer + _template_tokens(0, escaped_signs(written.written))


_AROUND_A_RESULT = len(_encode(ToolMessage("", ""))) - len('""""')


def _tokens_as_json_within(every: _Json, beside: Sequence[_Json], texts: Sequence[str]) -> int:
    """The same of results that all are texts, without writing them again: they are what is in
    `every` message and not `beside` them."""
    written_bytes = every.item_bytes - len(texts) * _AROUND_A_RESULT
    signs = escaped_signs(every.written)
    for items in beside:
        written_bytes -= items.item_bytes
        signs -= escaped_signs(items.written)
    return written_bytes - _bytes_of(texts) + _template_tokens(0, signs)


def _bytes_of(texts: Sequence[str]) -> int:
    return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)


def _template_tokens(layout_signs: int, escaped_signs: int) -> int:
    """At each comma, colon and bracket a template may put a space, or a line and its indentation:
    two tokens, whatever the depth (Llama 3.1 indents tools by 4). TGI's write four other signs as
    escapes of six letters each."""
    return 2 * layout_signs + 5 * escaped_signs
