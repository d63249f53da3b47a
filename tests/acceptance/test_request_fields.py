"""Each field of a request: what is taken, and how what is not is refused by name. A refused request
costs neither credits nor a place in the rate."""

import json
from typing import Any

import pytest
from tests.support.answers import reply
from tests.support.builders import a_tool, message
from tests.support.customer import Customer, a_customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.server import TollwayServer

A_CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
SCHEMA = {"name": "s", "schema": {"type": "object"}}
TEXT_PART = {"type": "text", "text": "Hi"}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
AUDIO_PART = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
NAMED = {"type": "function", "function": {"name": "add"}}


@pytest.fixture(scope="module")
def settings(running_upstream: FakeUpstream) -> str:
    return f"""
[[upstreams]]
name = "gemini"
dialect = "gemini"
base_url = "{running_upstream.base_url}"

[[models]]
id = "acme/gemini"
tier = "parrot"
context_length = 4096
upstreams = [{{ name = "gemini" }}]

[[upstreams]]
name = "openrouter"
dialect = "openrouter"
base_url = "{running_upstream.base_url}"

[[models]]
id = "acme/openrouter"
tier = "parrot"
context_length = 4096
upstreams = [{{ name = "openrouter" }}]
"""


@pytest.fixture(scope="module")
def fields_customer(server: TollwayServer) -> Customer:
    """One for all of them: what they cost does not matter here."""
    return a_customer(server, credits=10**9, limits={"requests_per_minute": 10_000})


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [message("Hi", "system"), message("Hi", "developer"), message("Hi")]},
        {"messages": [message([TEXT_PART, TEXT_PART])]},
        {"messages": [message("Hi", name="Ada")]},
        {"messages": [message("Hi")] * 1024},
        {
            "messages": [
                message("1 + 2?"),
                {"role": "assistant", "content": None, "tool_calls": [A_CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "3"},
            ]
        },
        {"temperature": 0},
        {"temperature": 2},
        {"temperature": 0.7},
        {"top_p": 0},
        {"top_p": 1},
        {"max_tokens": 1},
        {"max_completion_tokens": 1},
        {"max_tokens": 7, "max_completion_tokens": 7},
        {"stop": "\n"},
        {"stop": ["a", "b", "c", "d"]},
        {"stream": False},
        {"stream": True, "stream_options": {"include_usage": False}},
        {"tools": [a_tool()]},
        {"tools": [a_tool(f"f{n}") for n in range(128)]},
        {"tools": [a_tool()], "tool_choice": "auto"},
        {"tools": [a_tool()], "tool_choice": "none"},
        {"tools": [a_tool()], "tool_choice": "required"},
        {"tools": [a_tool()], "tool_choice": NAMED},
        {"tools": [a_tool()], "tool_choice": "add"},
        {"tools": [], "tool_choice": "required"},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s"}}},
        {"seed": 2**63 - 1},
        {"seed": -(2**63)},
        {"n": 4},
        {"presence_penalty": -2, "frequency_penalty": 2},
        {"logprobs": True, "top_logprobs": 20},
        {"logit_bias": {"50256": -100}},
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"parallel_tool_calls": False, "reasoning_effort": "low"},
        {"prediction": {"type": "content", "content": "Hi"}},
        {"modalities": ["text"]},
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
def test_a_field_is_taken(fields_customer: Customer, fields: dict[str, Any]) -> None:
    assert fields_customer.chat(**fields).status == 200


@pytest.mark.parametrize(
    "field",
    [
        "temperature",
        "top_p",
        "max_tokens",
        "stop",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "response_format",
        "seed",
        "n",
        "logit_bias",
        "user",
        "metadata",
        "audio",
        "web_search_options",
        "something_else",
    ],
)
def test_null_is_as_if_absent(
    upstream: FakeUpstream, fields_customer: Customer, field: str
) -> None:
    reply = fields_customer.chat(**{field: None})

    assert reply.status == 200
    assert reply.header("X-Tollway-Ignored-Params") is None
    assert upstream.last.body.get(field) is None or field in ("max_tokens", "stream")


WRONG: list[tuple[dict[str, Any], str | None, str]] = [
    ({"model": ...}, "model", "missing_required_parameter"),
    ({"model": None}, "model", "missing_required_parameter"),
    ({"model": 7}, "model", "invalid_value"),
    ({"messages": ...}, "messages", "missing_required_parameter"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [message("Hi")] * 1025}, "messages", "invalid_value"),
    ({"messages": "Hi"}, "messages", "invalid_value"),
    ({"messages": [message("Hi"), message("Hi", "robot")]}, "messages[1].role", "invalid_value"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [message(7)]}, "messages[0].content", "invalid_value"),
    ({"messages": [message([])]}, "messages[0].content", "invalid_value"),
    ({"messages": [message([{"type": "text"}])]}, "messages[0].content[0].text", "missing"),
    (
        {"messages": [message("a"), message("b"), message("c"), {"role": 3, "content": "x"}]},
        "messages[3].role",
        "invalid_value",
    ),
    (
        {"messages": [message("Hi"), {"role": "tool", "tool_call_id": "call_9", "content": "3"}]},
        "messages[1].tool_call_id",
        "invalid_value",
    ),
    (
        {"messages": [message("Hi"), {"role": "tool", "content": "3"}]},
        "messages[1].tool_call_id",
        "missing_required_parameter",
    ),
    (
        {"messages": [message("Hi"), {"role": "assistant", "content": None}]},
        "messages[1].content",
        "missing_required_parameter",
    ),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "1"}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"top_p": 1.1}, "top_p", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
    ({"max_tokens": True}, "max_tokens", "invalid_value"),
    ({"max_tokens": "5"}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    (
        {"max_tokens": 5, "max_completion_tokens": 6},
        "max_completion_tokens",
        "invalid_value",
    ),
    ({"stop": []}, "stop", "invalid_value"),
    ({"stop": ["a"] * 5}, "stop", "invalid_value"),
    ({"stop": 7}, "stop", "invalid_value"),
    ({"stop": ["a", 7]}, "stop[1]", "invalid_value"),
    ({"stream": "true"}, "stream", "invalid_value"),
    ({"stream": 1}, "stream", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    (
        {"stream": True, "stream_options": {"include_usage": "yes"}},
        "stream_options.include_usage",
        "invalid_value",
    ),
    ({"tools": [a_tool(f"f{n}") for n in range(129)]}, "tools", "invalid_value"),
    ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    ({"tools": [a_tool("no spaces")]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [a_tool(), a_tool()]}, "tools", "invalid_value"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tools": [a_tool()], "tool_choice": "sub"}, "tool_choice", "invalid_value"),
    (
        {"tools": [a_tool("sub")], "tool_choice": NAMED},
        "tool_choice",
        "invalid_value",
    ),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
    ({"response_format": "json_object"}, "response_format", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_value"),
    ({"seed": True}, "seed", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 5}, "n", "invalid_value"),
    ({"n": True}, "n", "invalid_value"),
    ({"presence_penalty": 2.1}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", "invalid_value"),
    ({"logprobs": 1}, "logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
    ({"user": 7}, "user", "invalid_value"),
    ({"metadata": {"a": 1}}, "metadata", "invalid_value"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort", "invalid_value"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio", "unsupported_parameter"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
    ({"messages": [message([TEXT_PART, IMAGE_PART])]}, "messages[0].content[1]", "unsupported"),
    ({"messages": [message([AUDIO_PART])]}, "messages[0].content[0]", "unsupported"),
]


@pytest.mark.parametrize(
    ("fields", "param", "code"), WRONG, ids=[json.dumps(w[0], default=str)[:60] for w in WRONG]
)
def test_a_wrong_field_is_refused_by_name(
    fields_customer: Customer,
    upstream: FakeUpstream,
    fields: dict[str, Any],
    param: str | None,
    code: str,
) -> None:
    requests = len(upstream.exchanges)

    refused = fields_customer.chat(**fields)

    assert refused.status == 400
    error = refused.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["code"].startswith(code)
    assert (param or "").partition("[")[0].partition(".")[0] in error["message"]
    assert len(upstream.exchanges) == requests


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"messages": [message("Hi", "function")]},
            "messages[0].role: invalid value 'function'. "
            "It may be system, developer, user, assistant, tool.",
        ),
        (
            {"tools": [{"type": "custom"}]},
            "tools[0].type: invalid enum value 'custom'. It may be function.",
        ),
        (
            {"tools": [a_tool()], "tool_choice": {"type": "allowed_tools"}},
            "tool_choice.type: invalid value 'allowed_tools'. It may be function.",
        ),
        (
            {"response_format": {"type": "xml"}},
            "response_format.type: invalid value 'xml'. It may be text, json_object, json_schema.",
        ),
        (
            {"tools": [a_tool("files.read")]},
            "tools[0].function.name: it may have letters, digits, _ and -, 64 at most.",
        ),
        (
            {"messages": [message([AUDIO_PART])]},
            "messages[0].content[0]: audio has no price here. Send text.",
        ),
    ],
)
def test_a_refusal_tells_what_may_be_sent_instead(
    fields_customer: Customer, fields: dict[str, Any], message: str
) -> None:
    assert fields_customer.chat(**fields).json()["error"]["message"] == message


def a_long_body_with_calls(unknown: bytes) -> bytes:
    """Read by its types first, of which none is of what is `unknown`."""
    call = json.dumps(A_CALL).encode()
    return (
        b'{"model":"a","messages":[{"role":"user","content":"%b"},'
        b'{"role":"assistant","content":"Hi","tool_calls":[%b],"x":%b}]}'
    ) % (b"a" * 20_000, call, unknown)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"model": "acme/parrot", "messages": [{"role": "user", "content": "x"}]} trailing',
        b'{"model": "a", "model": "b", "messages": []}',
        b'{"model": "a", "messages": [{"role": "user", "role": "user", "content": "x"}]}',
        b'{"model": "a", "messages": [], "temperature": NaN}',
        b'{"model": "a", "messages": [], "temperature": Infinity}',
        b'{"model": "a", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "a", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "a", "messages": ' + b"[" * 40 + b"]" * 40 + b"}",
        b"[" * 100_000,
        a_long_body_with_calls(b'"\xff"'),
        a_long_body_with_calls(b"[" * 40 + b"]" * 40),
    ],
    ids=lambda body: repr(body[:50]),
)
def test_what_is_not_one_clean_json_object_is_refused(
    fields_customer: Customer, body: bytes
) -> None:
    refused = fields_customer.ask("POST", "/chat/completions", body)

    assert refused.status == 400
    assert refused.json()["error"]["code"] == "invalid_json"


def test_a_role_that_is_none_is_told_which_are(fields_customer: Customer) -> None:
    refused = fields_customer.chat(messages=[{"role": "robot", "content": "Hello"}])

    assert refused.status == 400
    assert refused.json()["error"]["message"] == (
        "messages[0].role: invalid value 'robot'. It may be system, developer, user, assistant, "
        "tool."
    )


def test_an_unknown_model_is_not_found(fields_customer: Customer) -> None:
    refused = fields_customer.of("acme/none").chat()

    assert refused.status == 404
    assert refused.json()["error"]["code"] == "model_not_found"
    assert refused.json()["error"]["param"] == "model"


def test_a_model_that_the_token_may_not_use_is_not_found(customer: Customer) -> None:
    limited = customer.with_token(models=["acme/plain"])

    assert limited.chat().json()["error"]["code"] == "model_not_found"
    assert limited.of("acme/plain").chat().status == 200


def test_a_bias_goes_upstream_as_it_came(upstream: FakeUpstream, fields_customer: Customer) -> None:
    reply = fields_customer.chat(logit_bias={"50256": -100, "7": 0.5})

    assert reply.status == 200
    assert b'"logit_bias":{"50256":-100,"7":0.5}' in upstream.last.raw_body


def test_what_a_model_reasoned_goes_back_to_it_with_its_calls(
    upstream: FakeUpstream, fields_customer: Customer
) -> None:
    thought = {"reasoning_content": "I add.", "tool_calls": [A_CALL]}
    upstream.answer(reply(None, message=thought, finish_reason="tool_calls"))
    said = fields_customer.chat(tools=[a_tool("add")]).json()["choices"][0]["message"]

    result = {"role": "tool", "tool_call_id": "call_1", "content": "3"}
    answer = fields_customer.chat(messages=[message(), said, result], tools=[a_tool("add")])

    assert answer.status == 200
    assert upstream.last.body["messages"][1] == {"role": "assistant", **thought}


@pytest.mark.parametrize("content", ["", None], ids=["as told now", "as told before"])
def test_a_reply_that_was_cut_while_the_model_thought_can_be_sent_back(
    upstream: FakeUpstream, fields_customer: Customer, content: str | None
) -> None:
    thought = {"reasoning_content": "I wonder"}
    upstream.answer(reply(None, message=thought, finish_reason="length"))
    said = fields_customer.chat().json()["choices"][0]["message"]
    assert said == {"role": "assistant", "content": "", "refusal": None, **thought}

    answer = fields_customer.chat(
        messages=[message(), said | {"content": content}, message("Go on.")]
    )

    assert answer.status == 200
    assert upstream.last.body["messages"][1] == {"role": "assistant", "content": "", **thought}


def test_what_gemini_signs_goes_back_to_it_signed_and_to_others_without(
    upstream: FakeUpstream, fields_customer: Customer
) -> None:
    signed = A_CALL | {"extra_content": {"google": {"thought_signature": "CiQB0e2Kb/+="}}}
    gemini = fields_customer.of("acme/gemini")
    upstream.answer(reply(None, message={"tool_calls": [signed]}, finish_reason="tool_calls"))
    said = gemini.chat(tools=[a_tool("add")]).json()["choices"][0]["message"]

    result = {"role": "tool", "tool_call_id": "call_1", "content": "3"}
    asked = {"messages": [message(), said, result], "tools": [a_tool("add")]}
    assert gemini.chat(**asked).status == 200
    assert upstream.last.body["messages"][1]["tool_calls"] == [signed]
    assert fields_customer.chat(**asked).status == 200
    assert upstream.last.body["messages"][1]["tool_calls"] == [A_CALL]


DETAILS = [{"type": "reasoning.encrypted", "data": "gAAAAA==", "id": "call_1", "index": 0}]


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        ("acme/openrouter", {"reasoning_details": DETAILS}),
        ("acme/gemini", {"extra_content": {"google": {"thought_signature": "CiQB0e2Kb/+="}}}),
    ],
)
def test_what_a_server_has_back_goes_to_it_as_it_was_and_to_no_other(
    upstream: FakeUpstream, fields_customer: Customer, model: str, extra: dict[str, Any]
) -> None:
    theirs = fields_customer.of(model)
    upstream.answer(reply("It is 3.", message=extra))
    said = theirs.chat().json()["choices"][0]["message"]

    messages = [message(), said, message("Sure?")]
    assert theirs.chat(messages=messages).status == 200
    plain = message("It is 3.", role="assistant")
    assert upstream.last.body["messages"][1] == plain | extra
    assert fields_customer.chat(messages=messages).status == 200
    assert upstream.last.body["messages"][1] == plain


def test_an_unknown_field_is_ignored_and_named(
    upstream: FakeUpstream, fields_customer: Customer
) -> None:
    reply = fields_customer.chat(top_k=5, chat_template_kwargs={"a": 1})

    assert reply.status == 200
    assert reply.header("X-Tollway-Ignored-Params") == "top_k, chat_template_kwargs"
    assert not {"top_k", "chat_template_kwargs"} & set(upstream.last.body)


def test_a_field_that_the_model_lacks_is_ignored_and_named(
    upstream: FakeUpstream, fields_customer: Customer
) -> None:
    reply = fields_customer.of("acme/plain").chat(temperature=0.5, seed=7, user="u", max_tokens=9)

    assert reply.header("X-Tollway-Ignored-Params") == "seed, user"
    assert upstream.last.body["temperature"] == 0.5
    assert upstream.last.body["max_tokens"] == 9
    assert not {"seed", "user"} & set(upstream.last.body)


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [("acme/parrot", {"top_k": 5}, "top_k"), ("acme/plain", {"seed": 7}, "seed")],
)
def test_a_strict_token_is_told_of_what_would_be_ignored(
    customer: Customer, model: str, fields: dict[str, Any], param: str
) -> None:
    refused = customer.with_token(strict=True).of(model).chat(**fields)

    assert refused.status == 400
    assert refused.json()["error"]["code"] == "unsupported_parameter"
    assert refused.json()["error"]["param"] == param


def test_a_field_in_a_header_cannot_break_it(fields_customer: Customer) -> None:
    reply = fields_customer.chat(**{"x\r\nX-Credits-Consumed: 0": 1, "fine": 1})

    assert reply.header("X-Tollway-Ignored-Params") == "fine"
    assert len(reply.head.all("X-Credits-Consumed")) == 1


def test_a_malformed_request_costs_neither_rate_nor_credits(server: TollwayServer) -> None:
    customer = a_customer(server, limits={"requests_per_minute": 1})

    refused = [customer.chat(temperature=3) for _ in range(3)]
    unknown = customer.of("acme/none").chat()
    taken = customer.chat()

    assert [reply.status for reply in refused] == [400] * 3
    assert [r.header("x-ratelimit-remaining-requests") for r in refused] == ["1"] * 3
    assert [reply.header("X-Credits-Consumed") for reply in refused] == ["0"] * 3
    assert [reply.header("X-Credits-Remaining") for reply in refused] == ["100000"] * 3
    assert unknown.status == 404
    assert taken.status == 200


# --- the body -------------------------------------------------------------------------------------


def test_a_body_of_four_mebibytes_is_taken_and_one_byte_more_is_not(
    fields_customer: Customer,
) -> None:
    def body(size: int) -> bytes:
        head, tail = b'{"model":"acme/parrot","messages":[{"role":"user","content":"', b'"}]}'
        return head + b"x" * (size - len(head) - len(tail)) + tail

    taken = fields_customer.of("acme/parrot").ask(
        "POST", "/chat/completions", body(4 * 1024 * 1024)
    )
    refused = fields_customer.ask("POST", "/chat/completions", body(4 * 1024 * 1024 + 1))

    assert taken.status == 200
    assert refused.status == 413
    assert refused.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("depth", [32, 33])
def test_json_may_be_nested_to_a_depth_of_32(fields_customer: Customer, depth: int) -> None:
    nested: object = 1
    for _ in range(depth - 1):  # the document itself is the first level
        nested = [nested]

    status = fields_customer.chat(extra=nested).status

    assert status == {32: 200, 33: 400}[depth]
