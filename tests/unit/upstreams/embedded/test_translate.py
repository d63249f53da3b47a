import pytest
from tests.support.builders import a_tool

from tollway.errors import InvalidRequest
from tollway.settings.values import EMBEDDED_PARAMETERS
from tollway.upstreams.base import Ask
from tollway.upstreams.embedded.translate import ChildRequest, translate
from tollway.wire.requests import OPTIONAL_FIELDS

OPENER = "<tool_call>["
HELLO = [{"role": "user", "content": "Hello"}]
ADD, SUBTRACT = a_tool("add"), a_tool("subtract")


def translated(opener: str | None = OPENER, /, **fields: object) -> ChildRequest:
    return translate(Ask("req_1", "m", {"messages": HELLO, **fields}, 10), opener)


def message(**fields: object) -> object:
    messages = translated(messages=[fields]).fields["messages"]
    assert isinstance(messages, list)
    return messages[0]  # pyright: ignore[reportUnknownVariableType]


def test_the_defaults_are_those_of_openai() -> None:
    assert translated().fields == {
        "messages": HELLO,
        "temperature": 1.0,
        "top_p": 1.0,
        "timings_per_token": True,
    }


def test_fields_that_the_child_misreads_do_not_reach_it() -> None:
    request = translated(
        user="u", store=True, metadata={"a": "b"}, reasoning_effort="low", service_tier="auto", n=2
    )
    assert request.fields == translated().fields


def test_fields_that_the_child_knows_reach_it() -> None:
    known = {
        "temperature": 0.5,
        "top_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "logit_bias": {"7": -100.0},
        "stop": ["a", "b"],
    }
    assert translated(**known).fields == {**translated().fields, **known}


@pytest.mark.parametrize("name", sorted(OPTIONAL_FIELDS))
def test_what_a_model_says_it_heeds_is_what_reaches_the_child(name: str) -> None:
    values: dict[str, object] = {
        "logprobs": True,
        "modalities": ["text"],
        "moderation": {"model": "m"},
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_options": {"mode": "explicit"},
        "prompt_cache_retention": "24h",
        "reasoning_effort": "low",
        "response_format": {"type": "json_object"},
        "service_tier": "flex",
        "store": True,
        "tool_choice": "required",
        "tools": [ADD],
        "top_logprobs": 3,
        "verbosity": "low",
        "logit_bias": {"7": 1.0},
    }
    numbers = {"frequency_penalty", "presence_penalty", "temperature", "top_p"}
    value = values.get(name, 0.5 if name in numbers else 7 if name == "seed" else "x")
    needed: dict[str, dict[str, object]] = {
        "tool_choice": {"tools": [ADD]},
        "parallel_tool_calls": {"tools": [ADD]},
        "top_logprobs": {"logprobs": True},
    }
    beside = needed.get(name, {})

    reaches = translated(**beside, **{name: value}) != translated(**beside)

    assert reaches == (name in EMBEDDED_PARAMETERS)


def test_a_required_call_is_begun_for_the_model() -> None:
    fields = translated(tools=[ADD, SUBTRACT], tool_choice="required").fields

    assert fields["messages"] == [*HELLO, {"role": "assistant", "content": OPENER}]
    assert fields["tools"] == [ADD, SUBTRACT]
    assert fields["tool_choice"] == "required"
    assert fields["parallel_tool_calls"] is False
    assert fields["continue_final_message"] == "content"
    assert fields["add_generation_prompt"] is False


@pytest.mark.parametrize(
    "choice", ["subtract", {"type": "function", "function": {"name": "subtract"}}]
)
def test_of_a_named_choice_only_that_tool_is_sent(choice: object) -> None:
    request = translated(tools=[ADD, SUBTRACT], tool_choice=choice)

    assert request.fields["tools"] == [SUBTRACT]
    assert request.fields["tool_choice"] == "required"
    assert request.call_is_forced


def test_without_a_known_opener_a_call_is_only_asked_for() -> None:
    request = translated(None, tools=[ADD], tool_choice="required")

    assert request.fields["messages"] == HELLO
    assert request.fields["tool_choice"] == "required"
    assert "continue_final_message" not in request.fields
    assert not request.call_is_forced


def test_choice_none_sends_no_tools() -> None:
    assert translated(tools=[ADD], tool_choice="none").fields == translated().fields


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}])
def test_choice_auto_is_the_childs_own_default(choice: dict[str, object]) -> None:
    request = translated(tools=[ADD], parallel_tool_calls=True, **choice)

    assert request.fields["tools"] == [ADD]
    assert request.fields["parallel_tool_calls"] is True
    assert "tool_choice" not in request.fields
    assert not request.call_is_forced


def test_a_forced_call_has_no_format_and_no_stop() -> None:
    request = translated(
        tools=[ADD], tool_choice="add", response_format={"type": "json_object"}, stop="}"
    )
    assert not {"response_format", "stop"} & set(request.fields)


def test_a_schema_is_sent_in_the_childs_form() -> None:
    schema = {"type": "object"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    assert translated(response_format=wanted).fields["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": schema, "strict": True},
    }


def test_without_a_schema_any_object_will_do() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x"}}

    assert translated(response_format=wanted).fields["response_format"] == {"type": "json_object"}


def test_a_text_format_is_no_format() -> None:
    assert translated(response_format={"type": "text"}).fields == translated().fields


@pytest.mark.parametrize(("asked", "sent"), [(None, 1), (0, 1), (5, 5)])
def test_log_probabilities_always_ask_for_one_alternative(asked: int | None, sent: int) -> None:
    request = translated(logprobs=True, top_logprobs=asked)

    assert request.fields["top_logprobs"] == sent
    assert request.top_logprobs == (asked or 0)


def test_log_probabilities_with_tools_are_refused() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        translated(logprobs=True, tools=[ADD])
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", "logprobs")


def test_log_probabilities_without_use_of_the_tools_are_given() -> None:
    assert translated(logprobs=True, tools=[ADD], tool_choice="none").fields["logprobs"] is True


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 2, 2**32 - 1, 2**63 - 1, -1, -(2**63)])
def test_a_seed_is_never_the_childs_word_for_random(seed: int) -> None:
    request = translated(seed=seed, n=2)

    seeds = [request.fields_of(index)["seed"] for index in range(2)]
    assert seeds[0] != seeds[1]
    assert all(isinstance(s, int) and 0 <= s < 2**32 - 1 for s in seeds)


def test_without_a_seed_none_is_sent() -> None:
    assert "seed" not in translated(n=2).fields_of(1)


def test_a_developer_is_a_system() -> None:
    assert message(role="developer", content="Be brief.") == {
        "role": "system",
        "content": "Be brief.",
    }


def test_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert message(role="user", content=parts, name="Ann") == {"role": "user", "content": "ab"}


def test_a_part_that_is_not_text_is_refused_by_its_place() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
    ]
    with pytest.raises(InvalidRequest) as refusal:
        translated(messages=[*HELLO, {"role": "user", "content": parts}])
    assert refusal.value.param == "messages[1].content[1]"


def test_a_refusal_is_what_the_assistant_said() -> None:
    assert message(role="assistant", refusal="No.") == {"role": "assistant", "content": "No."}


def test_a_tool_result_names_its_call() -> None:
    assert message(role="tool", tool_call_id="call_1", content="42") == {
        "role": "tool",
        "tool_call_id": "call_1",
        "content": "42",
    }


@pytest.mark.parametrize(
    ("written", "sent"), [('{"a": 1}', '{"a": 1}'), ("", "{}"), ('{"a"', '"{\\"a\\""')]
)
def test_arguments_are_sent_back_as_json(written: str, sent: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": written}}

    assert message(role="assistant", tool_calls=[call]) == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": "call_1", "function": {"name": "f", "arguments": sent}}
        ],
    }
