from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    OPENAI_CALL_STREAM,
    ROLE,
    THOUGHT,
    WHOLE_CALL,
    Refusal,
    Shapes,
    chunk,
    counts,
    usage_chunk,
    whole,
)

_DEEPSEEK_USAGE = counts(12, 4, **THOUGHT, prompt_cache_hit_tokens=8, prompt_cache_miss_tokens=4)
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
    broken=sse(ROLE, chunk({"content": "4"}), chunk({}, "insufficient_system_resource")),
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
