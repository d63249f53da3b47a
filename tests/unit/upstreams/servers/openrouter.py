from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    CACHED,
    OPENAI_CALL_STREAM,
    ROLE,
    THOUGHT,
    WHOLE_CALL,
    Refusal,
    Shapes,
    chunk,
    counts,
    whole,
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
            usage=counts(12, 4, cost=0.0001, is_byok=False, **CACHED, **THOUGHT),
        ),
    ),
    whole=whole(
        {"content": "4", "refusal": None, "reasoning": "Two and two"},
        "stop",
        counts(12, 4, cost=0.0001, **CACHED, **THOUGHT),
        provider="DeepInfra",
    ),
    call=OPENAI_CALL_STREAM,
    whole_call=WHOLE_CALL,
    usage=(12, 4, 8, 2, "upstream"),
    broken=sse(
        ROLE,
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
