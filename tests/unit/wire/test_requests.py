"""The request table of the contract, row by row."""

import json
from typing import Any

import msgspec
import pytest
from openai.types.chat import completion_create_params
from tests.support.builders import (
    a_tool,
    chat_body,
    chat_bytes,
    data_url,
    image_part,
    message,
)

from tollway.errors import InvalidRequest
from tollway.wire import requests, strict_json
from tollway.wire.chat import ChatRequest
from tollway.wire.requests import (
    KNOWN_FIELDS,
    OPTIONAL_FIELDS,
    REWRITTEN_FIELDS,
    parse_chat_request,
)


def parsed(**fields: object) -> ChatRequest:
    return parse_chat_request(chat_bytes(**fields)).request


def forwarded(**fields: object) -> dict[str, Any]:
    """As the upstream gets it."""
    sent = parse_chat_request(chat_bytes(**fields)).fields
    by_name = json.loads(msgspec.json.encode(dict(sent)))
    assert json.loads(b"{%b}" % sent.json) == by_name
    return by_name


def without_nulls(value: object) -> Any:
    def present(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: one for name, one in fields.items() if one is not None}

    return json.loads(json.dumps(value), object_hook=present)


def refusal(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        parse_chat_request(body)
    return refused.value


CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
ASSISTANT = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "3"}
SIGNED = {"google": {"thought_signature": "CiQB0e2Kb/+="}}
DETAILS = [{"type": "reasoning.text", "text": "2 and 2", "index": 0}, {"weights": [1.5]}]
EMPTY: dict[str, Any] = {}
TEXT_PART: dict[str, Any] = {"type": "text", "text": "x"}
SCHEMA: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "s", "schema": {"type": "object"}},
}
BREAKPOINT = {"mode": "explicit", "ttl": "30m"}

ACCEPTED: list[tuple[str, object]] = [
    ("model", "acme/parrot"),
    ("messages", [message()] * 1024),
    ("messages", [message(role=role) for role in ("system", "developer", "user", "assistant")]),
    ("messages", [message([TEXT_PART, TEXT_PART], role="system", name="n")]),
    ("messages", [message([TEXT_PART | {"prompt_cache_breakpoint": BREAKPOINT}])]),
    ("messages", [message([TEXT_PART, {"type": "refusal", "refusal": "no"}], role="assistant")]),
    ("messages", [message(), ASSISTANT, RESULT, message()]),
    ("messages", [ASSISTANT, RESULT | {"content": [TEXT_PART]}]),
    ("messages", [message(""), {"role": "assistant", "content": None, "refusal": "no"}]),
    ("messages", [message(), message("4", role="assistant", reasoning_content="2 and 2")]),
    ("messages", [message(), ASSISTANT | {"reasoning_content": ""}, RESULT]),
    ("messages", [message(), ASSISTANT | {"tool_calls": [CALL | {"extra_content": SIGNED}]}]),
    ("messages", [message(), message("4", role="assistant", extra_content=SIGNED)]),
    ("messages", [message(), message("4", role="assistant", reasoning_details=DETAILS)]),
    ("messages", [message(), ASSISTANT | {"tool_calls": [CALL | {"extra_content": EMPTY}]}]),
    ("temperature", 0),
    ("temperature", 2),
    ("temperature", 0.7),
    ("top_p", 0),
    ("top_p", 1),
    ("max_tokens", 1),
    ("max_tokens", 10**12),
    ("max_completion_tokens", 5),
    ("stop", "END"),
    ("stop", ["a"]),
    ("stop", ["a", "b", "c", "d"]),
    ("stream", True),
    ("stream", False),
    ("tools", [a_tool(f"t{number}") for number in range(128)]),
    ("tools", [{"type": "function", "function": {"name": "a-B_9"}}]),
    ("response_format", {"type": "text"}),
    ("response_format", {"type": "json_object"}),
    ("response_format", SCHEMA),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "s"}}),
    ("seed", 2**63 - 1),
    ("seed", -(2**63)),
    ("n", 1),
    ("n", 4),
    ("presence_penalty", -2),
    ("frequency_penalty", 2.0),
    ("logprobs", True),
    ("logit_bias", {"50256": -100}),
    ("user", "u"),
    ("metadata", {f"k{number}": "v" * 512 for number in range(16)}),
    ("parallel_tool_calls", False),
    ("reasoning_effort", "none"),
    ("reasoning_effort", "max"),
    ("verbosity", "low"),
    ("store", True),
    ("service_tier", "auto"),
    ("service_tier", "fast"),
    ("prediction", {"type": "content", "content": "x"}),
    ("prediction", {"type": "content", "content": [TEXT_PART]}),
    ("prompt_cache_key", "k"),
    ("prompt_cache_options", {"mode": "explicit", "ttl": "30m"}),
    ("prompt_cache_retention", "24h"),
    ("prompt_cache_retention", "in_memory"),
    ("moderation", {"model": "omni", "policy": {"input": {"mode": "score"}}}),
    ("safety_identifier", "s"),
    ("modalities", ["text"]),
]
FORWARDED = [row for row in ACCEPTED if row[0] not in REWRITTEN_FIELDS]

VALUE, MISSING, UNSUPPORTED = (
    "invalid_value",
    "missing_required_parameter",
    "unsupported_parameter",
)
REFUSED: list[tuple[str, object, str, str]] = [
    ("model", ..., MISSING, "model"),
    ("model", None, MISSING, "model"),
    ("model", 5, VALUE, "model"),
    ("messages", ..., MISSING, "messages"),
    ("messages", None, MISSING, "messages"),
    ("messages", "hi", VALUE, "messages"),
    ("messages", [], VALUE, "messages"),
    ("messages", [message()] * 1025, VALUE, "messages"),
    ("messages", [message(), "hi"], VALUE, "messages[1]"),
    ("messages", [*[message()] * 3, message(role="boss")], VALUE, "messages[3].role"),
    ("messages", [message(), {"content": "x"}], MISSING, "messages[1].role"),
    ("messages", [{"role": "function", "name": "f", "content": "x"}], VALUE, "messages[0].role"),
    ("messages", [{"role": "user"}], MISSING, "messages[0].content"),
    ("messages", [message(None)], MISSING, "messages[0].content"),
    ("messages", [message(5)], VALUE, "messages[0].content"),
    ("messages", [message([])], VALUE, "messages[0].content"),
    ("messages", [message([TEXT_PART, {"type": "text"}])], MISSING, "messages[0].content[1].text"),
    ("messages", [message([{"type": "video"}])], VALUE, "messages[0].content[0].type"),
    ("messages", [message(name=5)], VALUE, "messages[0].name"),
    ("messages", [{"role": "assistant"}], MISSING, "messages[0].content"),
    ("messages", [{"role": "assistant", "tool_calls": []}], MISSING, "messages[0].content"),
    (
        "messages",
        [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function"}]}],
        MISSING,
        "messages[0].tool_calls[0].function",
    ),
    (
        "messages",
        [message("4", role="assistant", reasoning_details=[5])],
        VALUE,
        "messages[0].reasoning_details[0]",
    ),
    ("messages", [RESULT], VALUE, "messages[0].tool_call_id"),
    ("messages", [RESULT, ASSISTANT], VALUE, "messages[0].tool_call_id"),
    ("messages", [ASSISTANT, RESULT | {"tool_call_id": "x"}], VALUE, "messages[1].tool_call_id"),
    ("messages", [{"role": "tool", "content": "3"}], MISSING, "messages[0].tool_call_id"),
    ("temperature", -0.1, VALUE, "temperature"),
    ("temperature", 2.1, VALUE, "temperature"),
    ("temperature", "1", VALUE, "temperature"),
    ("temperature", True, VALUE, "temperature"),
    ("temperature", 10**400, VALUE, "temperature"),
    ("top_p", 1.1, VALUE, "top_p"),
    ("top_p", -1, VALUE, "top_p"),
    ("max_tokens", 0, VALUE, "max_tokens"),
    ("max_tokens", -5, VALUE, "max_tokens"),
    ("max_tokens", 1.5, VALUE, "max_tokens"),
    ("max_tokens", -0.0, VALUE, "max_tokens"),
    ("max_tokens", True, VALUE, "max_tokens"),
    ("max_tokens", "5", VALUE, "max_tokens"),
    ("max_completion_tokens", 0, VALUE, "max_completion_tokens"),
    ("stop", [], VALUE, "stop"),
    ("stop", ["a"] * 5, VALUE, "stop"),
    ("stop", ["a", 5], VALUE, "stop[1]"),
    ("stop", 5, VALUE, "stop"),
    ("stream", "true", VALUE, "stream"),
    ("stream", 1, VALUE, "stream"),
    ("stream_options", {"include_usage": True}, VALUE, "stream_options"),
    ("tools", {}, VALUE, "tools"),
    ("tools", [a_tool(f"t{number}") for number in range(129)], VALUE, "tools"),
    ("tools", [a_tool("twice"), a_tool("twice")], VALUE, "tools"),
    ("tools", [{"type": "custom", "custom": {}}], VALUE, "tools[0].type"),
    ("tools", [{"type": "function", "function": {}}], MISSING, "tools[0].function.name"),
    ("tools", [a_tool("add\n")], VALUE, "tools[0].function.name"),
    ("tools", [a_tool("a b")], VALUE, "tools[0].function.name"),
    ("tools", [a_tool("x" * 65)], VALUE, "tools[0].function.name"),
    ("tool_choice", "required", VALUE, "tool_choice"),
    ("tool_choice", "add", VALUE, "tool_choice"),
    ("tool_choice", 5, VALUE, "tool_choice"),
    ("tool_choice", {"type": "function"}, MISSING, "tool_choice.function"),
    ("response_format", "json", VALUE, "response_format"),
    ("response_format", {"type": "xml"}, VALUE, "response_format.type"),
    ("response_format", {"type": "json_schema"}, MISSING, "response_format.json_schema"),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"schema": {}}},
        MISSING,
        "response_format.json_schema.name",
    ),
    ("seed", 1.5, VALUE, "seed"),
    ("seed", True, VALUE, "seed"),
    ("seed", 2**63, VALUE, "seed"),
    ("seed", 2.0**63, VALUE, "seed"),
    ("n", 0, VALUE, "n"),
    ("n", 5, VALUE, "n"),
    ("n", 5.0, VALUE, "n"),
    ("presence_penalty", 2.1, VALUE, "presence_penalty"),
    ("frequency_penalty", -2.1, VALUE, "frequency_penalty"),
    ("logprobs", 1, VALUE, "logprobs"),
    ("top_logprobs", 5, VALUE, "top_logprobs"),
    ("logit_bias", {"1": 101}, VALUE, "logit_bias"),
    ("logit_bias", [1], VALUE, "logit_bias"),
    ("user", 5, VALUE, "user"),
    ("metadata", {"k": 1}, VALUE, "metadata"),
    ("metadata", {"k": "v" * 513}, VALUE, "metadata"),
    ("metadata", {str(number): "v" for number in range(17)}, VALUE, "metadata"),
    ("parallel_tool_calls", "no", VALUE, "parallel_tool_calls"),
    ("reasoning_effort", "huge", VALUE, "reasoning_effort"),
    ("verbosity", "loud", VALUE, "verbosity"),
    ("store", "yes", VALUE, "store"),
    ("service_tier", "gold", VALUE, "service_tier"),
    ("prediction", {"type": "guess"}, VALUE, "prediction.type"),
    ("prompt_cache_options", {"mode": "none"}, VALUE, "prompt_cache_options.mode"),
    ("prompt_cache_retention", "1h", VALUE, "prompt_cache_retention"),
    ("moderation", {}, MISSING, "moderation.model"),
    ("modalities", ["video"], VALUE, "modalities[0]"),
    ("modalities", ["text", "audio"], UNSUPPORTED, "modalities"),
    ("audio", {"voice": "alloy", "format": "wav"}, UNSUPPORTED, "audio"),
    ("web_search_options", {}, UNSUPPORTED, "web_search_options"),
    ("functions", [{"name": "f"}], UNSUPPORTED, "functions"),
    ("function_call", "auto", UNSUPPORTED, "function_call"),
    (
        "messages",
        [message([TEXT_PART, {"type": "input_audio", "input_audio": EMPTY}])],
        UNSUPPORTED,
        "messages[0].content[1]",
    ),
    (
        "messages",
        [message([{"type": "file", "file": EMPTY}])],
        UNSUPPORTED,
        "messages[0].content[0]",
    ),
]


@pytest.mark.parametrize(("field", "value"), ACCEPTED)
def test_a_sound_value_is_taken_as_it_is(field: str, value: object) -> None:
    request = parsed(**{field: value})

    taken = [*request.messages] if field == "messages" else getattr(request, field)
    assert json.loads(msgspec.json.encode(taken)) == without_nulls(value)


@pytest.mark.parametrize(("field", "value"), FORWARDED)
def test_a_sound_value_goes_on_as_it_is(field: str, value: object) -> None:
    assert forwarded(**{field: value})[field] == without_nulls(value)


@pytest.mark.parametrize(
    ("field", "value"), [("tools", []), ("tool_choice", "none"), ("tool_choice", "auto")]
)
def test_a_sound_value_that_asks_for_nothing_is_as_if_absent(field: str, value: object) -> None:
    assert getattr(parsed(**{field: value}), field) is None


@pytest.mark.parametrize(("field", "value", "code", "param"), REFUSED)
def test_a_malformed_value_is_refused_and_named(
    field: str, value: object, code: str, param: str
) -> None:
    refused = refusal(chat_bytes(**{field: value}))

    assert (refused.code, refused.param) == (code, param)
    assert param in refused.message or field in refused.message


@pytest.mark.parametrize("content", [{}, {"content": None}])
@pytest.mark.parametrize("thought", [{"reasoning_content": "2"}, {"reasoning_details": DETAILS}])
def test_what_was_cut_while_the_model_thought_is_sent_on_with_an_empty_text(
    content: Any, thought: Any
) -> None:
    cut = {"role": "assistant", **content, **thought}

    sent = forwarded(messages=[message(), cut, message("Go on.")])["messages"]

    assert sent[1] == cut | {"content": ""}


WHOLE_NUMBERS = [
    field.name
    for field in msgspec.structs.fields(ChatRequest)
    if isinstance(shape := msgspec.inspect.type_info(field.type), msgspec.inspect.UnionType)
    and any(isinstance(one, msgspec.inspect.IntType) for one in shape.types)
]


@pytest.mark.parametrize("field", WHOLE_NUMBERS)
@pytest.mark.parametrize("written", [b"3.0", b"3e0", b"30E-1"])
def test_a_whole_number_may_be_written_as_a_float(field: str, written: bytes) -> None:
    body = chat_bytes(logprobs=True, **{field: 3}).replace(b": 3", b": " + written)

    value = getattr(parse_chat_request(body).request, field)

    assert (type(value), value) == (int, 3)


def test_a_whole_number_goes_on_written_as_one() -> None:
    assert b'"seed":7}' in b"{%b}" % parse_chat_request(chat_bytes(seed=7.0)).fields.json


def test_a_word_that_is_not_possible_is_told_which_are() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,", "detail": "huge"}}
    deep = refusal(chat_bytes(messages=[message([image])]))

    low = refusal(chat_bytes(verbosity="loud"))
    assert low.message == "verbosity: invalid enum value 'loud'. It may be low, medium, high."
    assert deep.message.endswith("detail: invalid enum value 'huge'. It may be auto, low, high.")


TAGS = [
    ({"messages": [{"role": "robot"}]}, "system, developer, user, assistant, tool"),
    ({"messages": [message([{"type": "film"}])]}, "text, image_url, input_audio, file"),
    ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]}, "text"),
    ({"response_format": {"type": "yaml"}}, "text, json_object, json_schema"),
    ({"tools": [{"type": "retrieval"}]}, "function"),
]


@pytest.mark.parametrize(("fields", "known"), TAGS)
def test_a_type_that_is_not_possible_is_told_which_are(fields: Any, known: str) -> None:
    told = refusal(chat_bytes(**fields)).message
    assert told.endswith(f"'. It may be {known}.")


def test_a_role_that_is_null_is_missing() -> None:
    refused = refusal(chat_bytes(messages=[{"role": None, "content": "Hello"}]))
    assert (refused.code, refused.param) == ("missing_required_parameter", "messages[0].role")


@pytest.mark.parametrize("field", sorted(OPTIONAL_FIELDS | {"n", "max_tokens", "stream", "audio"}))
def test_null_is_as_if_absent(field: str) -> None:
    assert forwarded(**{field: None}) == forwarded()
    assert parse_chat_request(chat_bytes(**{field: None})).unknown == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [message(name=None)]},
        {"messages": [message(role="assistant", tool_calls=None, refusal=None, name=None)]},
        {"stream": True, "stream_options": {"include_usage": None}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": None}}]},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {**SCHEMA["json_schema"], "strict": None},
            }
        },  # type: ignore[dict-item]
        {"unheard_of": None},
    ],
)
def test_null_is_as_if_absent_inside_too(fields: dict[str, object]) -> None:
    assert "null" not in json.dumps(forwarded(**fields))
    assert parse_chat_request(chat_bytes(**fields)).unknown == ()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": NaN}', b'{"n":1,"n":2}'])
def test_what_is_no_json_object_is_invalid_json(body: bytes) -> None:
    refused = refusal(body)
    assert (refused.code, refused.param) == ("invalid_json", None)


def test_both_lengths_may_be_given_if_they_are_the_same() -> None:
    assert parsed(max_tokens=5, max_completion_tokens=5).output_tokens_wanted() == 5
    refused = refusal(chat_bytes(max_tokens=5, max_completion_tokens=6))
    assert refused.param == "max_completion_tokens"
    assert "5" in refused.message
    assert "6" in refused.message


@pytest.mark.parametrize(("stream", "taken"), [(True, True), (False, False), (None, False)])
def test_stream_options_are_only_for_streams(stream: bool | None, taken: bool) -> None:
    body = chat_bytes(stream=stream, stream_options={"include_usage": True})
    if taken:
        assert parse_chat_request(body).wants_usage
    else:
        assert refusal(body).param == "stream_options"


@pytest.mark.parametrize("value", [0, 1, "yes"])
def test_include_usage_is_a_boolean(value: object) -> None:
    refused = refusal(chat_bytes(stream=True, stream_options={"include_usage": value}))
    assert refused.param == "stream_options.include_usage"


@pytest.mark.parametrize("count", [0, 20])
def test_top_logprobs_go_with_logprobs(count: int) -> None:
    assert parsed(logprobs=True, top_logprobs=count).top_logprobs == count


@pytest.mark.parametrize("count", [-1, 21])
def test_top_logprobs_are_0_to_20(count: int) -> None:
    assert refusal(chat_bytes(logprobs=True, top_logprobs=count)).param == "top_logprobs"


# --- tools ------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_a_mode_of_tool_choice_stays(choice: str) -> None:
    assert forwarded(tools=[a_tool()], tool_choice=choice)["tool_choice"] == choice


@pytest.mark.parametrize("choice", ["add", {"type": "function", "function": {"name": "add"}}])
def test_a_named_tool_goes_on_as_openais_object(choice: object) -> None:
    sent = forwarded(tools=[a_tool("add"), a_tool("sub")], tool_choice=choice)
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize("choice", ["mul", {"type": "function", "function": {"name": "mul"}}])
def test_a_tool_choice_names_one_of_the_tools(choice: object) -> None:
    refused = refusal(chat_bytes(tools=[a_tool("add")], tool_choice=choice))
    assert refused.param == "tool_choice"
    assert "add" in refused.message


@pytest.mark.parametrize("choice", ["auto", "required", "add", None])
def test_no_tools_are_as_if_absent_and_so_is_the_choice(choice: str | None) -> None:
    sent = forwarded(tools=[], tool_choice=choice)
    assert "tools" not in sent
    assert "tool_choice" not in sent


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_choice_of_no_tool_needs_no_tools(choice: str) -> None:
    assert "tool_choice" not in forwarded(tool_choice=choice)


# --- what goes on -----------------------------------------------------------------------------


def test_what_the_upstream_layer_writes_is_not_forwarded() -> None:
    sent = forwarded(
        max_tokens=5,
        max_completion_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
        temperature=0.5,
        n=2,
    )
    assert sent == {"messages": [message()], "temperature": 0.5, "n": 2}


def test_a_field_that_is_not_named_does_not_pass_at_any_depth() -> None:
    odd = message([TEXT_PART | {"cache_control": EMPTY}], x=1)
    tool = {"type": "function", "function": {"name": "f", "y": 1}, "z": 1}
    sent = forwarded(messages=[odd], tools=[tool], top_k=5)
    assert sent == {
        "messages": [message([TEXT_PART])],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }


def test_a_tools_schema_passes_as_it_is() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [None, 1.5, "x"]}}, "x-odd": {}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    assert forwarded(tools=[tool])["tools"] == [tool]


def test_a_conversation_passes_as_it_is() -> None:
    messages = [message("be brief", role="system"), message(), ASSISTANT, RESULT]
    expected = [dict(m) for m in messages]
    del expected[2]["content"]
    assert forwarded(messages=messages)["messages"] == expected


def test_an_empty_list_of_calls_is_left_out() -> None:
    sent = forwarded(messages=[message("x", role="assistant", tool_calls=[])])
    assert sent["messages"] == [message("x", role="assistant")]


LONG = "The Tay Bridge fell in a storm. " * 20_000


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"seeds": 1, ', ""),
        ("", ', "seeds": 1'),
        ('"note": "\\"messages\\":[", ', ""),
        ('"note": {"messages":[{"role":"user","content":"x"}]}, ', ""),
        ("", ', "note": {"messages":[]}'),
    ],
)
def test_what_is_wrong_around_a_long_conversation_is_seen_as_around_a_short_one(
    before: str, after: str
) -> None:
    def unknown(content: str) -> tuple[str, ...]:
        messages = json.dumps([message(content), message("Short.")], separators=(",", ":"))
        body = f'{{{before}"messages":{messages},"model":"m1"{after}}}'
        return parse_chat_request(body.encode()).unknown

    assert len(LONG) > 2 * 256 * 1024
    assert unknown(LONG) == unknown("Why?") != ()


def test_a_long_conversation_passes_as_it_is() -> None:
    messages = [message(LONG), message("Because.", role="assistant"), message('"Why?"')]
    body = json.dumps({"messages": messages, "model": "m1", "user": "u"}).encode()

    fields = parse_chat_request(body).fields

    assert json.loads(b"{" + fields.json + b"}")["messages"] == messages


def test_unknown_fields_are_named() -> None:
    unknown = parse_chat_request(chat_bytes(top_k=5, min_p=0.1, extra=None)).unknown
    assert sorted(unknown) == ["min_p", "top_k"]


def test_a_refusal_tells_numbers_and_no_text() -> None:
    assert "temperature is 3" in refusal(chat_bytes(temperature=3)).message
    secret = refusal(chat_bytes(seed="tw_secret")).message
    assert "tw_secret" not in secret


def test_every_field_of_openais_request_is_known_or_refused() -> None:
    """Another version of the SDK: give each new field its type, or its refusal."""
    theirs = set(completion_create_params.CompletionCreateParamsBase.__annotations__)
    theirs |= {"stream"}
    unpriced = {"audio", "web_search_options", "functions", "function_call"}
    assert theirs - KNOWN_FIELDS == unpriced
    assert KNOWN_FIELDS - theirs == set()
    assert refusal(json.dumps(chat_body(audio={})).encode()).code == "unsupported_parameter"


def test_images_are_told_with_their_places() -> None:
    parsed = parse_chat_request(
        chat_bytes(
            messages=[
                message("Hello"),
                message([TEXT_PART, image_part("https://x/y.png"), image_part()]),
            ]
        )
    )
    assert [(image.path, image.url) for image in parsed.images] == [
        ("messages[1].content[1]", "https://x/y.png"),
        ("messages[1].content[2]", data_url()),
    ]


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", ["[]", "{}", '{"":0}', "1", '""'])
@pytest.mark.parametrize(
    "where",
    [
        '{"model":"m","messages":[{"role":"user","content":"x"}],"x":[%s]}',
        '{"model":"m","messages":[{"role":"user","content":"x","x":[%s]}]}',
        '{"model":"m","messages":[{"role":"user","content":[%s]}]}',
        '{"model":"m","messages":[{"role":"user","content":"x"}],"stop":[%s]}',
        '{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function",'
        '"function":{"name":"f","parameters":{"x":[%s]}}}]}',
    ],
)
def test_4_mib_of_values_are_refused_and_not_read(
    monkeypatch: pytest.MonkeyPatch, where: str, dense: str
) -> None:
    body = (where % ",".join([dense] * (4_000_000 // (len(dense) + 1)))).encode()
    read: list[bytes] = []
    monkeypatch.setattr(requests, "_decode_request", read.append)
    monkeypatch.setattr(strict_json, "_decode", read.append)

    refused = refusal(body)

    assert refused.code == "invalid_json"
    assert "more than 65536 values" in refused.message
    assert read == []


def test_128_tools_with_100_described_parameters_each_are_read() -> None:
    described = {f"p{n}": {"type": "string", "description": "What it is."} for n in range(100)}
    parameters = {"type": "object", "properties": described, "required": list(described)}
    tools = [a_tool(f"t{number}", parameters=parameters) for number in range(128)]

    assert forwarded(tools=tools)["tools"] == tools


def test_a_conversation_of_1024_messages_with_calls_and_parts_is_read() -> None:
    calls = [CALL | {"id": f"call_{number}"} for number in range(4)]
    turn = [message([TEXT_PART] * 4), ASSISTANT | {"tool_calls": calls}, RESULT, RESULT]
    messages = turn * 256

    assert len(forwarded(messages=messages)["messages"]) == 1024


def test_commas_in_a_text_are_no_values() -> None:
    text = '1,2,[3,{"a":4}],' * 20_000

    assert parsed(messages=[message(text, name="n")]).messages[0].content == text


NUMBERS = {str(number): 5e-324 for number in range(5_000)}


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": NUMBERS},
        {"tools": [a_tool("add", parameters=NUMBERS)]},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "s", "schema": NUMBERS},
            }
        },
    ],
)
@pytest.mark.parametrize("escaped", [False, True])
def test_many_numbers_are_read_by_what_bounds_the_time_of_each(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, object], escaped: bool
) -> None:
    body = chat_bytes(**fields)
    if escaped:
        for name in fields:
            body = body.replace(name.encode(), b"\\u00%02x" % ord(name[0]) + name[1:].encode())
    monkeypatch.delattr(requests, "_read_short")

    assert set(parse_chat_request(body).fields) == {"messages", *fields}


@pytest.mark.parametrize("kind", ["input_audio", "file"])
def test_a_part_has_no_numbers(kind: str) -> None:
    body = chat_bytes(messages=[message([{"type": kind, kind: NUMBERS}])])

    assert refusal(body).code == "invalid_value"
