"""A byte-level tokenizer makes at most a token a byte, and a template adds some."""

import json
import re
import unicodedata
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.builders import a_tool

from tollway.gateway.prompt import prompt_bound
from tollway.wire.chat import (
    AssistantMessage,
    CalledFunction,
    ExtraContent,
    Message,
    Signed,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)

_text = st.text(st.characters(codec="utf-8"))


def _byte_tokens(text: str) -> int:
    """Of the worst byte-level tokenizer, which normalises first where that makes it longer."""
    return max(len(form.encode()) for form in (text, unicodedata.normalize("NFKC", text)))


@given(st.lists(_text, max_size=5))
def test_the_bound_covers_every_byte_of_every_message(texts: list[str]) -> None:
    bound = prompt_bound([UserMessage(text) for text in texts]).tokens

    assert bound >= sum(map(_byte_tokens, texts)) + 16 * len(texts) + 256


@given(st.lists(_text, min_size=1, max_size=5))
def test_the_bound_covers_parts_and_tool_calls(texts: list[str]) -> None:
    parts: list[Any] = [TextPart(text) for text in texts]
    calls = [ToolCall(id="c", function=CalledFunction("f", json.dumps(texts)))]

    bound = prompt_bound([UserMessage(parts), AssistantMessage(tool_calls=calls)]).tokens

    assert bound >= 2 * 16 + 256 + sum(map(_byte_tokens, texts)) + len(json.dumps(texts))


@given(_text)
def test_the_bound_covers_tools_and_schemas(description: str) -> None:
    tool = a_tool("add")
    tool["function"]["description"] = description
    schema: dict[str, Any] = {"type": "json_schema", "json_schema": {"description": description}}
    plain = [UserMessage("Add 1 and 2.")]

    with_both = prompt_bound(plain, [tool], schema).tokens

    assert with_both >= prompt_bound(plain, None, None).tokens + 2 * _byte_tokens(description)


def test_the_bound_covers_calls_beside_a_text() -> None:
    calls = [ToolCall(id="c1", function=CalledFunction("f", "x" * 500))]
    with_calls = prompt_bound([AssistantMessage("I look.", tool_calls=calls)]).tokens
    assert with_calls >= prompt_bound([AssistantMessage("I look.")]).tokens + 500


def test_an_assistants_reasoning_counts() -> None:
    thought = AssistantMessage("4", reasoning_content="x" * 500)

    assert prompt_bound([thought]).text_bytes == 501


def test_the_signature_of_a_call_counts() -> None:
    function = CalledFunction("f", "{}")
    plain = ToolCall(id="c1", function=function)
    extra = ExtraContent(google=Signed("x" * 500))
    signed = ToolCall(id="c1", function=function, extra_content=extra)

    bounds = [prompt_bound([AssistantMessage(tool_calls=[c])]) for c in (plain, signed)]

    assert bounds[1].text_bytes >= bounds[0].text_bytes + 500


@pytest.mark.parametrize(
    "extras",
    [
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x" * 500}]},
        {"extra_content": ExtraContent(google=Signed("x" * 500))},
    ],
)
@pytest.mark.parametrize("calls", [None, [ToolCall(id="c", function=CalledFunction("f", "{}"))]])
def test_what_else_a_server_has_back_of_what_it_said_counts(
    extras: dict[str, Any], calls: list[ToolCall] | None
) -> None:
    said = AssistantMessage("4", tool_calls=calls)
    with_extras = AssistantMessage("4", tool_calls=calls, **extras)

    assert prompt_bound([with_extras]).text_bytes >= prompt_bound([said]).text_bytes + 500


_ascii = st.text(st.characters(codec="ascii"))
_function = st.builds(CalledFunction, st.just(""), _ascii)
_call = st.builds(ToolCall, type=st.just("function"), id=_ascii, function=_function)
_messages = st.lists(
    st.builds(UserMessage, _ascii)
    | st.builds(UserMessage, st.lists(st.builds(TextPart, _ascii), max_size=2))
    | st.builds(AssistantMessage, _ascii, tool_calls=st.lists(_call, max_size=2))
    | st.builds(ToolMessage, _ascii | st.lists(st.builds(TextPart, _ascii), max_size=2), _ascii)
)


@given(_messages)
def test_messages_that_are_written_at_once_count_as_each_by_itself(
    messages: list[Message],
) -> None:
    nothing = prompt_bound([])
    one_by_one = [prompt_bound([message]) for message in messages]

    text_bytes = sum(bound.text_bytes for bound in one_by_one)
    for_templates = sum(bound.template_tokens - nothing.template_tokens for bound in one_by_one)
    assert prompt_bound(messages) == (text_bytes, nothing.template_tokens + for_templates)


_texts_and_results = st.lists(
    st.builds(UserMessage, _text)
    | st.builds(
        AssistantMessage,
        _text,
        reasoning_content=st.none() | _text,
        reasoning_details=st.none() | st.lists(st.dictionaries(_text, _text), max_size=1),
        extra_content=st.none() | st.just(ExtraContent(google=Signed("x"))),
        tool_calls=st.none() | st.lists(_call, max_size=2),
    )
    | st.builds(ToolMessage, _text, _text)
)


@given(_texts_and_results)
def test_results_count_the_same_where_the_messages_were_written_before(
    messages: list[Message],
) -> None:
    written = msgspec.json.encode(messages)

    assert prompt_bound(messages, written=written) == prompt_bound(messages)


def test_one_character_that_normalises_to_eighteen_counts_as_eighteen() -> None:
    ligature = "\ufdfa"

    assert len(unicodedata.normalize("NFKC", ligature)) == 18
    assert prompt_bound([UserMessage(ligature)]).tokens == _byte_tokens(ligature) + 272


_values = st.recursive(st.integers(0, 9) | st.text("<é&'\"", max_size=3), st.lists)


def _tokens_in_lines(value: object) -> int:
    """At most, where a template indents it and a run of spaces is a token or two."""
    in_lines = re.sub("[<>&']", "\\\\u0000", json.dumps(value, indent=4, ensure_ascii=False))
    runs = re.findall(r"\n *", in_lines)
    return len(in_lines.encode()) - len("".join(runs)) + 2 * len(runs)


@given(_values)
def test_the_bound_covers_tools_that_a_template_writes_in_lines(enum: object) -> None:
    tools = [a_tool("add", parameters={"type": "object", "properties": {"a": {"enum": [enum]}}})]

    assert prompt_bound([], tools).tokens >= _tokens_in_lines(tools)


@given(_values)
def test_the_bound_covers_calls_that_a_template_writes_in_lines(value: object) -> None:
    arguments = {"a": value}
    written = json.dumps(arguments, separators=(",", ":"), ensure_ascii=False)
    call = ToolCall(id="", function=CalledFunction("f", written))

    bound = prompt_bound([AssistantMessage(tool_calls=[call])])

    assert bound.tokens - prompt_bound([AssistantMessage("f")]).tokens >= _tokens_in_lines(
        arguments
    )
