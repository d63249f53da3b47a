"""A client's request, written anew as the one the child understands: what is not written here does
not reach it.

Where llama.cpp differs from OpenAI's API (seen with the version that pyproject.toml pins):

- `tool_choice: required` lets a weak model talk first, for ever. Beginning the call for it makes
  the grammar force the rest.
- `tool_choice` as an object is taken for auto. So only the named tool is sent, and the call is
  begun.
- `tool_choice: none` still pays for the tools in the prompt. So they are not sent.
- Tool call arguments in the conversation that are not JSON, and parts other than text, are errors
  500. Without JSON the arguments are sent as a JSON string; other parts are refused here.
- A forced call together with a response format, and log probabilities together with tools in a
  stream, are errors 400.
- `logprobs` without `top_logprobs` gives 20 alternatives for each token, and `top_logprobs: 0`
  gives no log probabilities.
- The defaults are temperature 0.8 and top_p 0.95; OpenAI's are 1 and 1.
- Seeds have 32 bits, of which 2**32 - 1 means a random one.
  The same seed mostly gives the same text, not always: among other requests, two choices at
  temperature 1.5 differed from the commonest pair in 50 of 170 repetitions of one seed, and in none
  of 40 seeds tried three times each. Why was not found out; seeds are best effort.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tollway.errors import InvalidRequest
from tollway.upstreams.base import Ask
from tollway.wire.chat import (
    AssistantMessage,
    ChatRequest,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    Message,
    NamedToolChoice,
    RefusalPart,
    TextPart,
    Tool,
    ToolCall,
    ToolMessage,
    UserMessage,
)

SEEDS = 2**32 - 1

Fields = dict[str, object]


@dataclass(frozen=True, slots=True)
class ChildRequest:
    """What each of `choices` requests to the child says. `call_is_forced`: all that comes back is a
    tool call."""

    fields: Fields
    choices: int
    call_is_forced: bool
    seed: int | None
    top_logprobs: int

    def fields_of(self, index: int) -> Fields:
        # Equal seeds would make n equal choices, so each has the next one.
        if self.seed is None:
            return self.fields
        return {**self.fields, "seed": (self.seed + index) % SEEDS}


def translate(ask: Ask, tool_call_opener: str | None) -> ChildRequest:
    """`tool_call_opener` is what this model's template begins a call with; None where that is not
    known.

    Raises `InvalidRequest` for what the model cannot do.
    """
    request = msgspec.json.decode(
        msgspec.json.encode({**ask.fields, "model": ask.model}), type=ChatRequest
    )
    tools, must_call = _tools(request)
    if tools and request.logprobs:
        raise InvalidRequest(
            "The embedded model gives no log probabilities together with tools. Send logprobs"
            ' without tools, or with tool_choice "none".',
            code="unsupported_parameter",
            param="logprobs",
        )
    messages = [_message(message, place) for place, message in enumerate(request.messages)]
    fields: Fields = {
        "messages": messages,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "timings_per_token": True,
        **_given("presence_penalty", request.presence_penalty),
        **_given("frequency_penalty", request.frequency_penalty),
        **_given("logit_bias", request.logit_bias),
        **_logprob_fields(request),
        **_tool_fields(tools, must_call, request.parallel_tool_calls),
    }
    if must_call and tool_call_opener is not None:
        # There is no content to format, and to stop inside the arguments would break them.
        fields |= _begun_call_fields(messages, tool_call_opener)
        forced = True
    else:
        fields |= _given("stop", request.stop) | _format_fields(request)
        forced = False
    top_logprobs = request.top_logprobs or 0
    return ChildRequest(fields, request.n or 1, forced, request.seed, top_logprobs)


def _given(name: str, value: object) -> Fields:
    return {} if value is None else {name: value}


def _tools(request: ChatRequest) -> tuple[Sequence[Tool], bool]:
    """The tools to send, and whether one must be called."""
    tools, choice = request.tools or (), request.tool_choice
    if choice == "none":
        return (), False
    if choice is None or choice == "auto":
        return tools, False
    if choice == "required":
        return tools, bool(tools)
    name = choice.function.name if isinstance(choice, NamedToolChoice) else choice
    named = [tool for tool in tools if tool.function.name == name]
    return named[:1], bool(named)


def _tool_fields(tools: Sequence[Tool], must_call: bool, parallel: bool | None) -> Fields:
    if not tools:
        return {}
    fields: Fields = {"tools": [_tool(tool) for tool in tools]}
    if must_call:
        return fields | {"tool_choice": "required", "parallel_tool_calls": False}
    return fields | _given("parallel_tool_calls", parallel)


def _tool(tool: Tool) -> Fields:
    function = tool.function
    return {
        "type": "function",
        "function": {
            "name": function.name,
            **_given("description", function.description),
            **_given("parameters", function.parameters),
        },
    }


def _begun_call_fields(messages: Sequence[Fields], opener: str) -> Fields:
    return {
        "messages": [*messages, {"role": "assistant", "content": opener}],
        "continue_final_message": "content",
        "add_generation_prompt": False,  # else the child refuses the field before
    }


def _logprob_fields(request: ChatRequest) -> Fields:
    if not request.logprobs:
        return {}
    return {"logprobs": True, "top_logprobs": max(1, request.top_logprobs or 0)}


def _format_fields(request: ChatRequest) -> Fields:
    match request.response_format:
        case JsonObjectFormat() | JsonSchemaFormat(json_schema=JsonSchema(schema=None)):
            return {"response_format": {"type": "json_object"}}
        case JsonSchemaFormat(json_schema=wanted):
            schema = {"name": wanted.name, "schema": wanted.schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case _:
            return {}


def _message(message: Message, place: int) -> Fields:
    match message:
        case UserMessage():
            return {"role": "user", "content": _text(message.content, place)}
        case ToolMessage():
            content = _text(message.content, place)
            return {"role": "tool", "tool_call_id": message.tool_call_id, "content": content}
        case AssistantMessage():
            return _assistant_message(message, place)
        case _:
            # Many templates know no developer.
            return {"role": "system", "content": _text(message.content, place)}


def _assistant_message(message: AssistantMessage, place: int) -> Fields:
    said = message.content if message.content is not None else message.refusal
    content = "" if said is None else _text(said, place)
    fields: Fields = {"role": "assistant", "content": content}
    if message.tool_calls:
        fields["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return fields


def _tool_call(call: ToolCall) -> Fields:
    arguments = call.function.arguments or "{}"
    try:
        msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        # OpenAI takes back whatever a model wrote. As a JSON string it still tells the model what
        # it wrote.
        arguments = msgspec.json.encode(arguments).decode()
    return {
        "type": "function",
        "id": call.id,
        "function": {"name": call.function.name, "arguments": arguments},
    }


def _text(content: str | Sequence[object], place: int) -> str:
    if isinstance(content, str):
        return content
    return "".join(_part(part, f"messages[{place}].content[{n}]") for n, part in enumerate(content))


def _part(part: object, where: str) -> str:
    match part:
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
        case _:
            raise InvalidRequest(
                f"{where} is not text. The embedded model reads nothing else: send type text.",
                code="unsupported_parameter",
                param=where,
            )
