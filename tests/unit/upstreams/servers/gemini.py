from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    ARGUMENTS,
    Refusal,
    Shapes,
    a_call,
    chunk,
    counts,
    part,
    whole,
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
