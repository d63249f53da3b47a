from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    CACHED,
    OPENAI_CALL_STREAM,
    ROLE,
    WHOLE_CALL,
    Refusal,
    Shapes,
    chunk,
    counts,
    usage_chunk,
    whole,
)

_GROQ_USAGE = counts(12, 4, queue_time=0.07, prompt_time=0.006, completion_time=0.022, **CACHED)
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
        ROLE,
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
