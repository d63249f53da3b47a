from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    ADD,
    ARGUMENTS,
    Refusal,
    Shapes,
    a_call,
    chunk,
    counts,
    part,
    usage_chunk,
    whole,
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
