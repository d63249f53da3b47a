"""What each server really sends: the shapes of their documentation, sources and issues, named in
the rows of `tollway.upstreams.dialects`. `test_servers.py` plays them back."""

from dataclasses import dataclass
from typing import Any

from tests.unit.upstreams.playback import sse

Usage = tuple[int, int, int, int, str]  # input, output, cached, reasoning, and who counted


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reply that is an error, and what the client is told."""

    status: int
    body: Any
    error: str
    code: str
    param: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Shapes:
    """`answer` thinks, then says "4"; `call` calls add(2, 2). `usage` is of the answer, streamed or
    whole, with its own dialect."""

    answer: bytes
    whole: Any
    call: bytes
    whole_call: Any
    usage: Usage
    broken: bytes
    refusals: tuple[Refusal, ...]
    reasoning: str = ""


def chunk(delta: Any, finish: str | None = None, *, of: Any = None, **more: Any) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish, **(of or {})}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "m",
        "choices": [choice],
        **more,
    }


def usage_chunk(usage: Any, **more: Any) -> dict[str, Any]:
    return {**chunk({}), "choices": [], "usage": usage, **more}


def whole(message: Any, finish: str, usage: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
        ],
        "usage": usage,
        **more,
    }


def counts(input_tokens: int, output_tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        **more,
    }


def part(index: int | None = 0, **call: Any) -> dict[str, Any]:
    return {"tool_calls": [{**({} if index is None else {"index": index}), **call}]}


ADD = {"name": "add", "arguments": ""}
ARGUMENTS = '{"a": 2, "b": 2}'
OPENAI_CALL_STREAM = sse(
    chunk({"role": "assistant", "content": None}),
    chunk(part(id="call_1", type="function", function=ADD)),
    chunk(part(function={"arguments": '{"a": 2,'})),
    chunk(part(function={"arguments": ' "b": 2}'})),
    chunk({}, "tool_calls"),
    usage_chunk(counts(20, 9)),
)


def a_call(**changes: Any) -> dict[str, Any]:
    function = {"name": "add", "arguments": ARGUMENTS}
    return {"id": "call_1", "type": "function", "function": function, **changes}


WHOLE_CALL = whole({"content": None, "tool_calls": [a_call()]}, "tool_calls", counts(20, 9))
_CACHED = {"prompt_tokens_details": {"cached_tokens": 8}}
_THOUGHT = {"completion_tokens_details": {"reasoning_tokens": 2}}
_ROLE = chunk({"role": "assistant", "content": ""})

VLLM = Shapes(
    answer=sse(
        chunk({"role": "assistant", "content": ""}, of={"logprobs": None}, prompt_token_ids=None),
        chunk({"reasoning": "Two and", "reasoning_content": "Two and"}, of={"logprobs": None}),
        chunk({"reasoning": " two"}, of={"logprobs": None, "token_ids": None}),
        chunk({"content": "4"}, of={"logprobs": None, "token_ids": None}),
        chunk({"content": ""}, "stop", of={"logprobs": None, "stop_reason": None}),
        usage_chunk(counts(12, 4, **_CACHED)),
    ),
    whole=whole(
        {
            "content": "4",
            "reasoning": "Two and two",
            "reasoning_content": "Two and two",
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "tool_calls": [],
        },
        "stop",
        counts(12, 4, **_CACHED),
        service_tier=None,
        prompt_logprobs=None,
        kv_transfer_params=None,
    ),
    call=sse(
        _ROLE,
        chunk(part(id="chatcmpl-tool-1", type="function", function={"name": "add"})),
        chunk(part(function={"arguments": '{"a": 2,'})),
        chunk(part(function={"arguments": ' "b": 2}'})),
        chunk({"content": ""}, "tool_calls", of={"stop_reason": 128008}),
        usage_chunk(counts(20, 9)),
    ),
    whole_call=whole(
        {"content": None, "tool_calls": [a_call(id="chatcmpl-tool-1")], "reasoning": None},
        "stop",  # a named function ends with `stop` there
        counts(20, 9),
    ),
    usage=(12, 4, 8, 0, "upstream"),
    broken=sse(
        _ROLE,
        chunk({"content": "4"}),
        {"error": {"message": "EngineCore died.", "type": "InternalServerError", "code": 500}},
    ),
    refusals=(
        Refusal(
            400,
            {
                "error": {
                    "message": "This model's maximum context length is 8192 tokens. However, you "
                    "requested 9100 tokens (9000 in the messages, 100 in the completion).",
                    "type": "BadRequestError",
                    "param": None,
                    "code": 400,
                }
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(  # before the end of 2025
            400,
            {
                "object": "error",
                "message": "max_tokens must be at least 1, got -186.",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            },
            "InvalidRequest",
            "invalid_value",
        ),
        Refusal(
            404,
            {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError"}},
            "Unavailable",
            "unavailable",
        ),
        Refusal(503, {}, "Unavailable", "overloaded"),
    ),
    reasoning="Two and two",
)

SGLANG = Shapes(
    answer=sse(
        chunk({"role": "assistant", "content": ""}, of={"logprobs": None, "matched_stop": None}),
        chunk(
            {"role": None, "content": None, "reasoning_content": "Two and two", "tool_calls": None},
            usage={"prompt_tokens": 12, "completion_tokens": None, "total_tokens": 12},
        ),
        chunk({"role": None, "content": "4", "reasoning_content": None, "tool_calls": None}),
        chunk({"content": None}, "stop", of={"matched_stop": 151645}),
        usage_chunk(counts(12, 4, prompt_tokens_details=None, reasoning_tokens=2)),
    ),
    whole=whole(
        {"content": "4", "reasoning_content": "Two and two", "tool_calls": None},
        "stop",
        counts(12, 4, prompt_tokens_details=None, reasoning_tokens=2),
        metadata={"weight_version": "default"},
    ),
    call=sse(
        _ROLE,
        chunk({**part(id="call_1", type="function", function=ADD), "content": None}),
        chunk(part(id=None, type="function", function={"name": None, "arguments": '{"a": 2,'})),
        chunk(part(id=None, type="function", function={"name": None, "arguments": ' "b": 2}'})),
        chunk({"content": None}, "tool_calls", of={"matched_stop": None}),
        usage_chunk(counts(20, 9)),
    ),
    whole_call=whole(
        {"content": None, "tool_calls": [a_call(index=-1)]}, "tool_calls", counts(20, 9)
    ),
    usage=(12, 4, 0, 2, "upstream"),
    broken=sse(_ROLE, chunk({"content": "4"}), chunk({}, "abort")),
    refusals=(
        Refusal(
            400,
            {
                "object": "error",
                "message": "The input (9000 tokens) is longer than the model's context length "
                "(8192 tokens).",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(
            503,
            {"object": "error", "message": "The request queue is full.", "code": 503},
            "Unavailable",
            "overloaded",
        ),
    ),
    reasoning="Two and two",
)


def _ollama(delta: Any, finish: str | None = None) -> dict[str, Any]:
    return chunk(
        {"role": "assistant", "content": "", **delta}, finish, system_fingerprint="fp_ollama"
    )


OLLAMA = Shapes(
    answer=sse(
        _ollama({"reasoning": "Two and"}),
        _ollama({"reasoning": " two"}),
        _ollama({"content": "4"}),
        _ollama({}, "stop"),
        usage_chunk(counts(12, 4)),
    ),
    whole=whole({"content": "4", "reasoning": "Two and two"}, "stop", counts(12, 4)),
    call=sse(
        _ollama({"tool_calls": [a_call(index=0)]}),
        _ollama({}, "tool_calls"),
        usage_chunk(counts(20, 9)),
    ),
    whole_call=whole({"content": "", "tool_calls": [a_call(index=0)]}, "tool_calls", counts(20, 9)),
    usage=(12, 4, 0, 0, "upstream"),
    broken=sse(_ollama({"content": "4"}), done=False),
    refusals=(
        Refusal(
            404,
            {
                "error": {
                    "message": "model 'x' not found",
                    "type": "not_found_error",
                    "param": None,
                    "code": None,
                }
            },
            "Unavailable",
            "unavailable",
        ),
        Refusal(
            503,
            {
                "error": {
                    "message": "server busy, please try again. maximum pending requests exceeded",
                    "type": "api_error",
                    "param": None,
                    "code": None,
                }
            },
            "Unavailable",
            "overloaded",
        ),
        Refusal(
            400,
            {"error": {"message": "invalid image input", "type": "invalid_request_error"}},
            "InvalidRequest",
            "invalid_value",
        ),
    ),
    reasoning="Two and two",
)

LLAMA_SERVER = Shapes(
    answer=sse(
        ": ",  # sse_ping while it reads the prompt
        chunk({"role": "assistant", "content": None}),
        chunk({"reasoning_content": "Two and"}),
        chunk({"reasoning_content": " two"}),
        chunk({"content": "4"}),
        chunk({}, "stop"),
        usage_chunk(counts(12, 4, **_CACHED), timings={"predicted_n": 4}),
    ),
    whole=whole(
        {"content": "4", "reasoning_content": "Two and two"},
        "stop",
        counts(12, 4, **_CACHED),
        timings={"predicted_n": 4},
        system_fingerprint="b1-0",
    ),
    call=OPENAI_CALL_STREAM,
    whole_call=whole(
        {"content": "", "tool_calls": [a_call(id="rZH4VrDJ")]}, "tool_calls", counts(20, 9)
    ),
    usage=(12, 4, 8, 0, "upstream"),
    broken=sse(
        _ROLE,
        chunk({"content": "4"}),
        'error: {"code":500,"message":"slot failed","type":"server_error"}',
        done=False,
    ),
    refusals=(
        Refusal(
            400,
            {
                "error": {
                    "code": 400,
                    "message": "the request exceeds the available context size. try increasing it",
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": 3021,
                    "n_ctx": 2048,
                }
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(
            401,
            {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}},
            "Unavailable",
            "unavailable",
        ),
        Refusal(
            503,
            {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
            "Unavailable",
            "overloaded",
        ),
    ),
    reasoning="Two and two",
)

TGI = Shapes(
    answer=sse(
        chunk({"role": "assistant", "content": ""}),
        chunk({"role": "assistant", "content": "4"}, system_fingerprint="3.0.0-native"),
        chunk({"role": "assistant", "content": ""}, "eos_token"),
        usage_chunk(counts(12, 4)),
        space="",
    ),
    whole=whole({"content": "4"}, "stop", counts(12, 4)),
    call=sse(
        chunk(
            {
                "role": "assistant",
                "tool_calls": {
                    "index": 0,
                    "id": "",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a": 2,'},
                },
            }
        ),
        chunk(
            {
                "role": "assistant",
                "tool_calls": {
                    "index": 0,
                    "id": "",
                    "type": "function",
                    "function": {"name": None, "arguments": ' "b": 2}'},
                },
            }
        ),
        chunk({"role": "assistant", "content": ""}, "eos_token"),
        usage_chunk(counts(20, 9)),
        space="",
    ),
    whole_call=whole(
        {
            "tool_calls": [
                {
                    "id": 0,
                    "type": "function",
                    "function": {"description": None, "name": "add", "arguments": {"a": 2, "b": 2}},
                }
            ]
        },
        "eos_token",
        counts(20, 9),
    ),
    usage=(12, 4, 0, 0, "upstream"),
    broken=sse(
        chunk({"role": "assistant", "content": "4"}),
        {"error": "Request failed during generation", "error_type": "generation"},
        done=False,
        space="",
    ),
    refusals=(
        Refusal(
            422,
            {
                "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= "
                "4096. Given: 5013 `inputs` tokens and 128 `max_new_tokens`",
                "error_type": "validation",
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(
            422,
            {
                "error": "Input validation error: `top_k` must be strictly positive",
                "error_type": "validation",
            },
            "InvalidRequest",
            "invalid_value",
        ),
        Refusal(
            429,
            {"error": "Model is overloaded", "error_type": "overloaded"},
            "Unavailable",
            "overloaded",
        ),
        Refusal(
            424,
            {"error": "Request failed during generation", "error_type": "generation"},
            "UpstreamFailed",
            "upstream_error",
        ),
    ),
)

OPENAI = Shapes(
    answer=sse(
        chunk(
            {"role": "assistant", "content": "", "refusal": None},
            of={"logprobs": None},
            service_tier="default",
            system_fingerprint="fp_1",
            obfuscation="x",
        ),
        chunk({"content": "4"}, of={"logprobs": None}, service_tier="default", obfuscation="abc"),
        chunk({}, "stop", of={"logprobs": None}, service_tier="default"),
        usage_chunk(counts(12, 4, **_CACHED, **_THOUGHT)),
    ),
    whole=whole(
        {"content": "4", "refusal": None, "annotations": []},
        "stop",
        counts(12, 4, **_CACHED, **_THOUGHT),
        service_tier="default",
    ),
    call=OPENAI_CALL_STREAM,
    whole_call=WHOLE_CALL,
    usage=(12, 4, 8, 2, "upstream"),
    broken=sse(
        _ROLE,
        chunk({"content": "4"}),
        {"error": {"message": "The server had an error.", "type": "server_error", "code": None}},
    ),
    refusals=(
        Refusal(
            400,
            {
                "error": {
                    "message": "This model's maximum context length is 8192 tokens. However, your "
                    "messages resulted in 9000 tokens.",
                    "type": "invalid_request_error",
                    "param": "messages",
                    "code": "context_length_exceeded",
                }
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(
            400,
            {
                "error": {
                    "message": "Unsupported value: 'temperature' does not support 0.5 with this "
                    "model. Only the default (1) value is supported.",
                    "type": "invalid_request_error",
                    "param": "temperature",
                    "code": "unsupported_value",
                }
            },
            "InvalidRequest",
            "unsupported_parameter",
            "temperature",
        ),
        Refusal(
            429,
            {
                "error": {
                    "message": "Rate limit reached for requests",
                    "type": "requests",
                    "param": None,
                    "code": "rate_limit_exceeded",
                }
            },
            "Unavailable",
            "overloaded",
            headers=(("retry-after", "7"),),
        ),
        Refusal(
            429,
            {
                "error": {
                    "message": "You exceeded your current quota, please check your plan.",
                    "type": "insufficient_quota",
                    "param": None,
                    "code": "insufficient_quota",
                }
            },
            "Unavailable",
            "unavailable",
        ),
        Refusal(
            401,
            {"error": {"message": "Incorrect API key provided: sk-1", "code": "invalid_api_key"}},
            "Unavailable",
            "unavailable",
        ),
    ),
)

_FILTERED = {"hate": {"filtered": False, "severity": "safe"}}
AZURE = Shapes(
    answer=sse(
        {
            "id": "",
            "object": "",
            "created": 0,
            "model": "",
            "choices": [],
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _FILTERED}],
        },
        chunk({"role": "assistant", "content": "", "refusal": None}, of={"logprobs": None}),
        chunk({"content": "4"}, of={"content_filter_results": _FILTERED, "logprobs": None}),
        chunk({}, "stop", of={"content_filter_results": {}, "logprobs": None}),
        usage_chunk(counts(12, 4, **_CACHED, **_THOUGHT)),
    ),
    whole=whole(
        {"content": "4", "refusal": None},
        "stop",
        counts(12, 4, **_CACHED, **_THOUGHT),
        prompt_filter_results=[{"prompt_index": 0, "content_filter_results": _FILTERED}],
    ),
    call=OPENAI_CALL_STREAM,
    whole_call=WHOLE_CALL,
    usage=(12, 4, 8, 2, "upstream"),
    broken=sse(_ROLE, chunk({"content": "4"}), done=False),
    refusals=(
        Refusal(
            400,
            {
                "error": {
                    "message": "The response was filtered due to the prompt triggering Azure "
                    "OpenAI's content management policy.",
                    "type": None,
                    "param": "prompt",
                    "code": "content_filter",
                    "status": 400,
                    "innererror": {"code": "ResponsibleAIPolicyViolation"},
                }
            },
            "InvalidRequest",
            "invalid_value",
            "messages",
        ),
        Refusal(
            404,
            {
                "error": {
                    "code": "DeploymentNotFound",
                    "message": "The API deployment for this resource does not exist.",
                }
            },
            "Unavailable",
            "unavailable",
        ),
        Refusal(
            401,
            {"statusCode": 401, "message": "Unauthorized. Access token is missing or invalid."},
            "Unavailable",
            "unavailable",
        ),
        Refusal(
            429,
            {"error": {"code": "429", "message": "Requests have exceeded the token rate limit."}},
            "Unavailable",
            "overloaded",
            headers=(("retry-after", "26"),),
        ),
    ),
)

OPENROUTER = Shapes(
    answer=sse(
        ": OPENROUTER PROCESSING",
        ": OPENROUTER PROCESSING",
        chunk(
            {
                "role": "assistant",
                "content": "",
                "reasoning": "Two and two",
                "reasoning_details": [{"type": "reasoning.text", "text": "Two and two"}],
            },
            of={"native_finish_reason": None, "logprobs": None},
            provider="DeepInfra",
        ),
        chunk({"role": "assistant", "content": "4"}, of={"native_finish_reason": None}),
        chunk({"role": "assistant", "content": ""}, "stop", of={"native_finish_reason": "stop"}),
        chunk(
            {"role": "assistant", "content": ""},
            usage=counts(12, 4, cost=0.0001, is_byok=False, **_CACHED, **_THOUGHT),
        ),
    ),
    whole=whole(
        {"content": "4", "refusal": None, "reasoning": "Two and two"},
        "stop",
        counts(12, 4, cost=0.0001, **_CACHED, **_THOUGHT),
        provider="DeepInfra",
    ),
    call=OPENAI_CALL_STREAM,
    whole_call=WHOLE_CALL,
    usage=(12, 4, 8, 2, "upstream"),
    broken=sse(
        _ROLE,
        chunk({"content": "4"}),
        chunk(
            {"content": ""},
            "error",
            error={"code": "server_error", "message": "Provider disconnected unexpectedly"},
            provider="x",
        ),
    ),
    refusals=(
        Refusal(
            402,
            {"error": {"code": 402, "message": "Insufficient credits", "metadata": {}}},
            "Unavailable",
            "unavailable",
        ),
        Refusal(
            403,
            {
                "error": {
                    "code": 403,
                    "message": "Input was flagged by moderation",
                    "metadata": {"reasons": ["violence"], "flagged_input": "..."},
                }
            },
            "InvalidRequest",
            "invalid_value",
            "messages",
        ),
        Refusal(
            200,  # a provider that failed after the head was sent
            {"error": {"code": 502, "message": "Provider returned error"}, "user_id": "u"},
            "UpstreamFailed",
            "upstream_error",
        ),
        Refusal(
            529, {"error": {"code": 529, "message": "Overloaded"}}, "Unavailable", "overloaded"
        ),
        Refusal(
            400,
            {
                "error": {
                    "code": 400,
                    "message": "This endpoint's maximum context length is 8192 tokens.",
                }
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
    ),
    reasoning="Two and two",
)


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


MISTRAL = Shapes(
    answer=sse(
        _ROLE,
        chunk({"content": [_thinking("Two and")]}),
        chunk({"content": [_thinking(" two")]}),
        chunk({"content": [{"type": "text", "text": "4"}]}),
        chunk({"content": ""}, "stop", usage=counts(12, 4, **_CACHED)),
    ),
    whole=whole(
        {"content": [_thinking("Two and two"), {"type": "text", "text": "4"}], "tool_calls": None},
        "stop",
        counts(12, 4, **_CACHED),
    ),
    call=sse(
        _ROLE,
        chunk(
            {
                "content": "",
                "tool_calls": [
                    {
                        "id": "Abc123xyz",
                        "function": {"name": "add", "arguments": ARGUMENTS},
                        "index": 0,
                    }
                ],
            },
            "tool_calls",
            usage=counts(20, 9),
        ),
    ),
    whole_call=whole(
        {
            "content": "",
            "tool_calls": [
                {"id": "Abc123xyz", "function": {"name": "add", "arguments": ARGUMENTS}, "index": 0}
            ],
        },
        "tool_calls",
        counts(20, 9),
    ),
    usage=(12, 4, 8, 0, "upstream"),
    broken=sse(_ROLE, chunk({"content": "4"}), chunk({"content": ""}, "error")),
    refusals=(
        Refusal(
            422,
            {
                "object": "error",
                "message": {
                    "detail": [
                        {
                            "type": "extra_forbidden",
                            "loc": ["body", "logit_bias"],
                            "msg": "Extra inputs are not permitted",
                            "input": {},
                        }
                    ]
                },
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            },
            "InvalidRequest",
            "unsupported_parameter",
            "logit_bias",
        ),
        Refusal(
            400,
            {
                "object": "error",
                "message": "Prompt contains 66385 tokens and 0 draft tokens, too large for model "
                "with 32768 maximum context length",
                "type": "invalid_request_prompt",
                "param": None,
                "code": "3051",
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(401, {"detail": "Unauthorized"}, "Unavailable", "unavailable"),
        Refusal(
            429,
            {"object": "error", "message": "Requests rate limit exceeded", "code": "1300"},
            "Unavailable",
            "overloaded",
        ),
    ),
    reasoning="Two and two",
)

_DEEPSEEK_USAGE = counts(12, 4, **_THOUGHT, prompt_cache_hit_tokens=8, prompt_cache_miss_tokens=4)
DEEPSEEK = Shapes(
    answer=sse(
        ": keep-alive",
        ": keep-alive",
        chunk({"role": "assistant", "content": None, "reasoning_content": ""}),
        chunk({"content": None, "reasoning_content": "Two and"}),
        chunk({"content": None, "reasoning_content": " two"}),
        chunk({"content": "4", "reasoning_content": None}),
        chunk({"content": "", "reasoning_content": None}, "stop"),
        usage_chunk(_DEEPSEEK_USAGE),
    ),
    whole=whole({"content": "4", "reasoning_content": "Two and two"}, "stop", _DEEPSEEK_USAGE),
    call=OPENAI_CALL_STREAM,
    whole_call=WHOLE_CALL,
    usage=(12, 4, 8, 2, "upstream"),
    broken=sse(_ROLE, chunk({"content": "4"}), chunk({}, "insufficient_system_resource")),
    refusals=(
        Refusal(
            402,
            {"error": {"message": "Insufficient Balance", "type": "unknown_error", "code": "x"}},
            "Unavailable",
            "unavailable",
        ),
        Refusal(
            400,
            {
                "error": {
                    "message": "This model's maximum context length is 65536 tokens. However, you "
                    "requested 70000 tokens.",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "invalid_request_error",
                }
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(503, {"error": {"message": "Server overloaded"}}, "Unavailable", "overloaded"),
    ),
    reasoning="Two and two",
)

_GROQ_USAGE = counts(12, 4, queue_time=0.07, prompt_time=0.006, completion_time=0.022, **_CACHED)
GROQ = Shapes(
    answer=sse(
        chunk({"role": "assistant", "content": ""}, x_groq={"id": "req_1"}),
        chunk({"reasoning": "Two and two", "channel": "analysis"}),
        chunk({"content": "4"}, of={"logprobs": None}),
        chunk({}, "stop", x_groq={"id": "req_1", "usage": _GROQ_USAGE}),
        usage_chunk(_GROQ_USAGE),
    ),
    whole=whole(
        {"content": "4", "reasoning": "Two and two"},
        "stop",
        _GROQ_USAGE,
        x_groq={"id": "req_1"},
        usage_breakdown=None,
    ),
    call=OPENAI_CALL_STREAM,
    whole_call=WHOLE_CALL,
    usage=(12, 4, 8, 0, "upstream"),
    broken=sse(
        _ROLE,
        chunk({"content": "4"}),
        {
            "error": {
                "message": "Failed to call a function.",
                "type": "invalid_request_error",
                "code": "tool_use_failed",
                "failed_generation": "<function=add>",
                "status_code": 400,
            }
        },
    ),
    refusals=(
        Refusal(
            400,
            {
                "error": {
                    "message": "Failed to call a function. See 'failed_generation'.",
                    "type": "invalid_request_error",
                    "code": "tool_use_failed",
                    "failed_generation": "<function=add>",
                }
            },
            "UpstreamFailed",
            "upstream_error",
        ),
        Refusal(
            413,
            {
                "error": {
                    "message": "Please reduce the length of the messages or completion.",
                    "type": "invalid_request_error",
                    "param": "messages",
                }
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(
            400,
            {
                "error": {
                    "message": "property 'logit_bias' is unsupported",
                    "type": "invalid_request_error",
                    "param": "logit_bias",
                }
            },
            "InvalidRequest",
            "unsupported_parameter",
            "logit_bias",
        ),
        Refusal(498, {"error": {"message": "Flex tier capacity"}}, "Unavailable", "overloaded"),
    ),
    reasoning="Two and two",
)

TOGETHER = Shapes(
    answer=sse(
        chunk(
            {"token_id": 1, "role": "assistant", "content": "", "reasoning": "Two and two"},
            of={"text": "", "seed": None, "logprobs": None},
            usage=None,
        ),
        chunk(
            {"token_id": 19, "role": "assistant", "content": "4", "tool_calls": None},
            of={"text": "4", "logprobs": None},
            usage=None,
        ),
        chunk(
            {"token_id": 2, "role": "assistant", "content": "", "tool_calls": None},
            "eos",
            of={"text": "", "seed": 7},
            usage=counts(12, 4, cached_tokens=8),
        ),
    ),
    whole=whole(
        {"content": "4", "reasoning": "Two and two", "tool_calls": []},
        "eos",
        counts(12, 4, cached_tokens=8),
        prompt=[],
    ),
    call=OPENAI_CALL_STREAM,
    whole_call=WHOLE_CALL,
    usage=(12, 4, 8, 0, "upstream"),
    broken=sse(
        _ROLE,
        chunk({"content": "4"}),
        {"error": {"message": "overloaded", "type": "server_error", "code": None}},
    ),
    refusals=(
        Refusal(
            403,
            {
                "error": {
                    "message": "Input validation error: `inputs` tokens + `max_new_tokens` must be "
                    "<= 8193. Given: 9000 `inputs` tokens and 100 `max_new_tokens`",
                    "type": "invalid_request_error",
                    "param": "max_tokens",
                    "code": None,
                }
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(403, {"error": {"message": "Forbidden"}}, "Unavailable", "unavailable"),
        Refusal(529, {"error": {"message": "Overloaded"}}, "Unavailable", "overloaded"),
    ),
    reasoning="Two and two",
)

ANTHROPIC = Shapes(
    answer=sse(
        chunk({"role": "assistant", "content": "4"}),
        chunk({}, "stop"),
        usage_chunk(counts(12, 4)),
        end="\r\n\r\n",
    ),
    whole=whole({"content": "4", "refusal": None}, "stop", counts(12, 4)),
    call=sse(
        chunk({"role": "assistant", "content": ""}),
        chunk(part(id="toolu_1", type="function", function=ADD)),
        chunk(part(function={"arguments": ARGUMENTS})),
        chunk({}, "tool_calls"),
        usage_chunk(counts(20, 9)),
        end="\r\n\r\n",
    ),
    whole_call=whole(
        {"content": None, "tool_calls": [a_call(id="toolu_1")]}, "tool_calls", counts(20, 9)
    ),
    usage=(12, 4, 0, 0, "upstream"),
    broken=sse(
        chunk({"role": "assistant", "content": "4"}),
        {"error": {"message": "Overloaded", "type": "overloaded_error", "code": None}},
        end="\r\n\r\n",
    ),
    refusals=(
        Refusal(
            529,
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            "Unavailable",
            "overloaded",
        ),
        Refusal(
            400,
            {
                "error": {
                    "code": "invalid_request_error",
                    "message": "prompt is too long: 208310 tokens > 200000 maximum",
                    "type": "invalid_request_error",
                    "param": None,
                }
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(
            400,
            {
                "error": {
                    "code": "invalid_request_error",
                    "message": "Your credit balance is too low to access the Anthropic API.",
                    "type": "invalid_request_error",
                    "param": None,
                }
            },
            "Unavailable",
            "unavailable",
        ),
    ),
)

# What it thought is in the total alone: 12 of the prompt, 4 answered, 6 thought.
_GEMINI_USAGE = {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 22}
GEMINI = Shapes(
    answer=sse(
        chunk({"role": "assistant", "content": "4"}, usage=_GEMINI_USAGE),
        chunk({"role": "assistant"}, "stop", usage=_GEMINI_USAGE),
    ),
    whole=whole({"content": "4"}, "stop", _GEMINI_USAGE),
    call=sse(
        chunk(
            {
                "role": "assistant",
                **part(
                    None,
                    id="fc-1",
                    type="function",
                    function={"name": "add", "arguments": ARGUMENTS},
                ),
            }
        ),
        chunk({"role": "assistant"}, "stop", usage={**counts(20, 9), "total_tokens": 35}),
    ),
    whole_call=whole({"tool_calls": [a_call(id="")]}, "tool_calls", counts(20, 9)),
    usage=(12, 10, 0, 6, "upstream"),
    broken=sse(
        chunk({"role": "assistant", "content": "4"}),
        chunk({"role": "assistant"}, "function_call_filter: MALFORMED_FUNCTION_CALL"),
    ),
    refusals=(
        Refusal(
            400,
            [
                {
                    "error": {
                        "code": 400,
                        "message": 'Invalid JSON payload received. Unknown name "store": Cannot '
                        "find field.",
                        "status": "INVALID_ARGUMENT",
                    }
                }
            ],
            "InvalidRequest",
            "unsupported_parameter",
            "store",
        ),
        Refusal(
            400,
            [
                {
                    "error": {
                        "code": 400,
                        "message": "API key not valid. Please pass a valid API key.",
                        "status": "INVALID_ARGUMENT",
                    }
                }
            ],
            "Unavailable",
            "unavailable",
        ),
        Refusal(
            400,
            [
                {
                    "error": {
                        "code": 400,
                        "message": "The input token count (1200000) exceeds the maximum number of "
                        "tokens allowed (1048576).",
                        "status": "INVALID_ARGUMENT",
                    }
                }
            ],
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(
            429,
            [
                {
                    "error": {
                        "code": 429,
                        "message": "You exceeded your current quota, please check your plan and "
                        "billing details.",
                        "status": "RESOURCE_EXHAUSTED",
                        "details": [
                            {
                                "@type": "type.googleapis.com/google.rpc.RetryInfo",
                                "retryDelay": "34.07s",
                            }
                        ],
                    }
                }
            ],
            "Unavailable",
            "overloaded",
        ),
    ),
)

GENERIC = Shapes(
    answer=sse(_ROLE, chunk({"content": "4"}), chunk({}, "stop"), usage_chunk(counts(12, 4))),
    whole=whole({"content": "4"}, "stop", counts(12, 4)),
    call=OPENAI_CALL_STREAM,
    whole_call=WHOLE_CALL,
    usage=(12, 4, 0, 0, "upstream"),
    broken=sse(_ROLE, chunk({"content": "4"}), done=False),
    refusals=(
        Refusal(500, "<html>oops</html>", "UpstreamFailed", "upstream_error"),
        Refusal(502, {}, "UpstreamFailed", "upstream_error"),
        Refusal(504, {}, "UpstreamTimeout", "upstream_timeout"),
    ),
)

SERVERS: dict[str, Shapes] = {
    "generic": GENERIC,
    "vllm": VLLM,
    "sglang": SGLANG,
    "ollama": OLLAMA,
    "llama-server": LLAMA_SERVER,
    "tgi": TGI,
    "openai": OPENAI,
    "azure": AZURE,
    "openrouter": OPENROUTER,
    "mistral": MISTRAL,
    "deepseek": DEEPSEEK,
    "groq": GROQ,
    "together": TOGETHER,
    "anthropic": ANTHROPIC,
    "gemini": GEMINI,
}
