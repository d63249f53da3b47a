"""How each server is asked."""

from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest
from tests.support.answers import reply, stream
from tests.support.builders import a_tool, message
from tests.support.fake_upstream import Exchange, FakeUpstream
from tests.unit.gateway.parts import an_admission
from tests.unit.upstreams.playback import play

from tollway.errors import InvalidRequest
from tollway.settings import DialectName
from tollway.upstreams.dialects import DIALECTS, GENERIC, Dialect, fields_for, understood_by
from tollway.upstreams.normalise import finish_reason
from tollway.wire.requests import OPTIONAL_FIELDS
from tollway.wire.usage import read_usage

each_row = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS.keys())

EVERYTHING: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": ["."],
    "tools": [a_tool("add")],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "seed": 7,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"5": 1},
    "user": "u",
    "metadata": {"a": "b"},
    "reasoning_effort": "low",
    "verbosity": "low",
    "store": False,
    "service_tier": "auto",
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "moderation": {"model": "m"},
    "modalities": ["text"],
}

DETAILS: list[dict[str, Any]] = [
    {"type": "reasoning.text", "text": "2 and 2", "signature": None, "index": 0},
    {"type": "reasoning.encrypted", "data": "gAAAAA==", "id": "call_1", "format": "v1"},
    {"type": "reasoning.unheard_of", "arguments": {"a": [0.5, None]}},
]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeUpstream]:
    with FakeUpstream() as server:
        yield server


async def asked(
    server: FakeUpstream, dialect: Dialect, *, streamed: bool = False, **request: Any
) -> Exchange:
    answer = stream(["a"]) if streamed else reply("a")
    got = await play(server, answer, dialect, streamed=streamed, **request)
    assert got.error is None
    return server.last


def test_the_settings_know_every_dialect_by_name() -> None:
    assert set(get_args(DialectName)) == set(DIALECTS)
    assert GENERIC.name == "generic"


def test_every_optional_field_is_tried_here() -> None:
    assert EVERYTHING.keys() == OPTIONAL_FIELDS


@each_row
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_a_server_is_asked_for_what_it_understands_and_no_more(
    server: FakeUpstream, dialect: Dialect, streamed: bool
) -> None:
    body = (await asked(server, dialect, streamed=streamed, **EVERYTHING)).body

    understood = {dialect.renamed.get(f, f): f for f in OPTIONAL_FIELDS - dialect.dropped}
    expected: dict[str, Any] = {theirs: EVERYTHING[ours] for theirs, ours in understood.items()}
    expected |= {"model": "their/model", dialect.cap: 500, "stream": streamed}
    if streamed and dialect.asks_for_usage:
        expected["stream_options"] = {"include_usage": True}
    assert body.pop("messages") == [message()]
    assert body == expected


@each_row
async def test_the_cap_has_the_name_that_the_server_takes(
    server: FakeUpstream, dialect: Dialect
) -> None:
    exchange = await asked(server, dialect, max_tokens=5)
    assert exchange.body[dialect.cap] == 500  # what the hold pays for
    other = {"max_tokens", "max_completion_tokens"} - {dialect.cap}
    assert not other & exchange.body.keys()


@each_row
def test_a_row_names_fields_that_there_are(dialect: Dialect) -> None:
    assert dialect.dropped <= OPTIONAL_FIELDS
    assert dialect.renamed.keys() <= OPTIONAL_FIELDS - dialect.dropped


@each_row
async def test_a_plain_request_is_sent_as_it_came(server: FakeUpstream, dialect: Dialect) -> None:
    messages = [message("Be brief.", role="system"), message("Hello"), message("Hi", "assistant")]
    messages.append(message("Again?"))
    exchange = await asked(server, dialect, messages=messages, temperature=0.5, stop=["."])
    assert exchange.body == {
        "messages": messages,
        "temperature": 0.5,
        "stop": ["."],
        "model": "their/model",
        dialect.cap: 500,
        "stream": False,
    }


def test_what_no_upstream_understands_the_model_does_not_support() -> None:
    mistral, groq = DIALECTS["mistral"], DIALECTS["groq"]

    assert understood_by([GENERIC]) is None
    assert understood_by([mistral, GENERIC]) is None
    assert understood_by([mistral]) == OPTIONAL_FIELDS - mistral.dropped
    both = understood_by([mistral, groq])
    assert both is not None
    assert OPTIONAL_FIELDS - both == mistral.dropped & groq.dropped
    assert "seed" in both


# --- the key and the address ----------------------------------------------------------------------


@each_row
async def test_the_key_is_in_the_header_that_the_server_reads(
    server: FakeUpstream, dialect: Dialect
) -> None:
    exchange = await asked(server, dialect)
    keys = (exchange.header("authorization"), exchange.header("api-key"))
    assert keys == ((None, "sk-key") if dialect.name == "azure" else ("Bearer sk-key", None))
    assert exchange.path == "/v1/chat/completions"


async def test_azure_is_asked_at_the_address_of_the_deployment(server: FakeUpstream) -> None:
    azure = DIALECTS["azure"]
    server.answer(reply("a"), path="2024-10-21")
    got = await play(
        server,
        reply("a"),
        azure,
        streamed=False,
        api_version="2024-10-21",
        model="gpt 4/o%",
    )
    assert got.error is None
    path = "/v1/deployments/gpt%204%2Fo%25/chat/completions?api-version=2024-10-21"
    assert server.last.path == path
    server.forget_answers()


# --- what else is written for it ------------------------------------------------------------------


@each_row
async def test_more_choices_than_the_server_gives_are_refused_before_it_is_asked(
    server: FakeUpstream, dialect: Dialect
) -> None:
    before = len(server.exchanges)
    got = await play(server, reply("a", choices=2), dialect, streamed=False, n=2)
    server.forget_answers()

    if dialect.choices_max is None:
        assert got.error is None
        assert server.last.body["n"] == 2
        return
    assert isinstance(got.error, InvalidRequest)
    assert (got.error.code, got.error.param) == ("unsupported_parameter", "n")
    assert len(server.exchanges) == before
    assert got.outcome.cost == 0


async def test_more_choices_of_a_stream_are_refused_too(server: FakeUpstream) -> None:
    before = len(server.exchanges)
    got = await play(server, stream(["a"]), DIALECTS["groq"], streamed=True, n=2)
    server.forget_answers()
    assert isinstance(got.error, InvalidRequest)
    assert got.error.param == "n"
    assert len(server.exchanges) == before


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_one_choice_can_be_asked_of_a_server_that_gives_one(
    server: FakeUpstream, streamed: bool
) -> None:
    exchange = await asked(server, DIALECTS["groq"], streamed=streamed, n=1)
    assert exchange.body["n"] == 1


@pytest.mark.parametrize(("top_p", "sent"), [(1, None), (1.0, None), (0.99, 0.99)])
async def test_tgi_is_not_told_a_top_p_that_it_refuses(
    server: FakeUpstream, top_p: float, sent: float | None
) -> None:
    exchange = await asked(server, DIALECTS["tgi"], top_p=top_p)
    assert exchange.body.get("top_p") == sent


@pytest.mark.parametrize("name", ["ollama", "tgi", "mistral", "deepseek", "cerebras", "together"])
async def test_a_developer_is_the_system_where_the_server_knows_none(
    server: FakeUpstream, name: str
) -> None:
    messages = [message("Be brief.", role="developer"), message("Hello")]
    assert (await asked(server, DIALECTS[name], messages=messages)).body["messages"] == [
        message("Be brief.", role="system"),
        message("Hello"),
    ]
    exchange = await asked(server, DIALECTS["openai"], messages=messages)
    assert exchange.body["messages"] == messages


@pytest.mark.parametrize("name", ["mistral", "groq"])
async def test_names_are_left_out_where_the_server_refuses_them(
    server: FakeUpstream, name: str
) -> None:
    named = [message("Hello", name="ann")]
    exchange = await asked(server, DIALECTS[name], messages=named)
    assert exchange.body["messages"] == [message("Hello")]
    exchange = await asked(server, DIALECTS["vllm"], messages=named)
    assert exchange.body["messages"] == named


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("generic", ["reasoning_content"]),
        ("vllm", ["reasoning", "reasoning_content"]),
        ("sglang", ["reasoning_content"]),
        ("ollama", ["reasoning"]),
        ("llama-server", ["reasoning_content"]),
        ("tgi", []),
        ("openai", []),
        ("azure", []),
        ("openrouter", ["reasoning"]),
        ("mistral", []),
        ("deepseek", ["reasoning_content"]),
        ("groq", []),
        ("cerebras", ["reasoning"]),
        ("together", ["reasoning", "reasoning_content"]),
        ("anthropic", []),
        ("gemini", []),
    ],
)
async def test_reasoning_goes_back_in_the_fields_that_the_server_has_for_it(
    server: FakeUpstream, name: str, fields: list[str]
) -> None:
    said = message("4", role="assistant")
    messages = [message("2 + 2?"), said | {"reasoning_content": "2 and 2"}, message("Sure?")]
    exchange = await asked(server, DIALECTS[name], messages=messages)
    assert exchange.body["messages"] == [
        message("2 + 2?"),
        said | dict.fromkeys(fields, "2 and 2"),
        message("Sure?"),
    ]


@each_row
@pytest.mark.parametrize("place", ["google", "vertex"])
async def test_signatures_of_calls_go_back_to_gemini_alone(
    server: FakeUpstream, dialect: Dialect, place: str
) -> None:
    function = {"name": "add", "arguments": "{}"}
    plain = {"id": "Abc123xyz", "type": "function", "function": function}
    signed = plain | {"extra_content": {place: {"thought_signature": "CiQB0e2Kb/+="}}}

    def messages(call: dict[str, Any]) -> list[dict[str, Any]]:
        result = {"role": "tool", "tool_call_id": "Abc123xyz", "content": "4"}
        return [message("2 + 2?"), {"role": "assistant", "tool_calls": [call]}, result]

    exchange = await asked(server, dialect, messages=messages(signed))

    sent = messages(signed if dialect.name == "gemini" else plain)
    assert exchange.body["messages"] == sent


@each_row
async def test_details_of_reasoning_go_back_to_openrouter_alone_and_as_they_came(
    server: FakeUpstream, dialect: Dialect
) -> None:
    plain = message("4", role="assistant")
    detailed = plain | {"reasoning_details": DETAILS}

    exchange = await asked(server, dialect, messages=[message("2 + 2?"), detailed, message("?")])

    sent = detailed if dialect.name == "openrouter" else plain
    assert exchange.body["messages"] == [message("2 + 2?"), sent, message("?")]


@each_row
async def test_signatures_of_texts_go_back_to_gemini_alone(
    server: FakeUpstream, dialect: Dialect
) -> None:
    plain = message("4", role="assistant")
    signed = plain | {"extra_content": {"google": {"thought_signature": "CiQB0e2Kb/+="}}}

    exchange = await asked(server, dialect, messages=[message("2 + 2?"), signed, message("?")])

    sent = signed if dialect.name == "gemini" else plain
    assert exchange.body["messages"] == [message("2 + 2?"), sent, message("?")]


async def test_ids_of_calls_fit_mistral_and_still_belong_together(server: FakeUpstream) -> None:
    function = {"name": "add", "arguments": "{}"}
    ids = ["call_0123456789", "call_0123456780", "Abc123xyz"]
    made = [{"id": id_, "type": "function", "function": function} for id_ in ids]
    messages = [
        message("2 + 2?"),
        {"role": "assistant", "tool_calls": made},
        *({"role": "tool", "tool_call_id": id_, "content": "4"} for id_ in ids),
    ]
    exchange = await asked(server, DIALECTS["mistral"], messages=messages)

    sent = exchange.body["messages"]
    sent_ids = [call["id"] for call in sent[1]["tool_calls"]]
    assert [answer["tool_call_id"] for answer in sent[2:]] == sent_ids
    assert len(set(sent_ids)) == 3
    assert all(len(id_) == 9 and id_.isalnum() and id_.isascii() for id_ in sent_ids)
    assert sent_ids[2] == "Abc123xyz"
    again = await asked(server, DIALECTS["mistral"], messages=messages)
    assert again.body["messages"] == sent


def test_what_the_gateway_decides_cannot_be_overruled_in_any_dialect() -> None:
    smuggled = {"model": "dear", "max_tokens": 10**6, "max_completion_tokens": 9, "stream": True}
    for dialect in DIALECTS.values():
        assert not smuggled.keys() & fields_for(dialect, smuggled).keys()


# --- what a row says of replies is what is read ---------------------------------------------------


@each_row
def test_the_words_for_an_end_are_known(dialect: Dialect) -> None:
    for theirs, ours in dialect.ends.items():
        assert finish_reason(theirs, has_calls=False) == ours


@each_row
def test_the_parts_of_the_usage_are_read_where_the_row_says(dialect: Dialect) -> None:
    for path in dialect.cached_tokens:
        report = read_usage(nested(path, 3))
        assert report is not None
        assert (report.cached_tokens, report.reasoning_tokens) == (3, 0)
    for path in dialect.reasoning_tokens:
        report = read_usage(nested(path, 3))
        assert report is not None
        assert (report.cached_tokens, report.reasoning_tokens) == (0, 3)


def nested(path: str, value: int) -> dict[str, Any]:
    *outer, last = path.split(".")
    part: Any = {last: value}
    for name in reversed(outer):
        part = {name: part}
    return {"prompt_tokens": 9, "completion_tokens": 7, **part}


def test_a_request_is_not_changed_by_being_written_for_a_server() -> None:
    parsed = an_admission(messages=[message("Be brief.", role="developer", name="n")]).parsed
    before = msgspec.json.encode(parsed.request)
    fields_for(DIALECTS["mistral"], parsed.fields)
    assert msgspec.json.encode(parsed.request) == before
