from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    CACHED,
    ROLE,
    Refusal,
    Shapes,
    a_call,
    chunk,
    counts,
    part,
    usage_chunk,
    whole,
)

VLLM = Shapes(
    answer=sse(
        chunk({"role": "assistant", "content": ""}, of={"logprobs": None}, prompt_token_ids=None),
        chunk({"reasoning": "Two and", "reasoning_content": "Two and"}, of={"logprobs": None}),
        chunk({"reasoning": " two"}, of={"logprobs": None, "token_ids": None}),
        chunk({"content": "4"}, of={"logprobs": None, "token_ids": None}),
        chunk({"content": ""}, "stop", of={"logprobs": None, "stop_reason": None}),
        usage_chunk(counts(12, 4, **CACHED)),
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
        counts(12, 4, **CACHED),
        service_tier=None,
        prompt_logprobs=None,
        kv_transfer_params=None,
    ),
    call=sse(
        ROLE,
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
        ROLE,
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
