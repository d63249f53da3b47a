from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    CACHED,
    OPENAI_CALL_STREAM,
    ROLE,
    Refusal,
    Shapes,
    a_call,
    chunk,
    counts,
    usage_chunk,
    whole,
)

LLAMA_SERVER = Shapes(
    answer=sse(
        ": ",  # sse_ping while it reads the prompt
        chunk({"role": "assistant", "content": None}),
        chunk({"reasoning_content": "Two and"}),
        chunk({"reasoning_content": " two"}),
        chunk({"content": "4"}),
        chunk({}, "stop"),
        usage_chunk(counts(12, 4, **CACHED), timings={"predicted_n": 4}),
    ),
    whole=whole(
        {"content": "4", "reasoning_content": "Two and two"},
        "stop",
        counts(12, 4, **CACHED),
        timings={"predicted_n": 4},
        system_fingerprint="b1-0",
    ),
    call=OPENAI_CALL_STREAM,
    whole_call=whole(
        {"content": "", "tool_calls": [a_call(id="rZH4VrDJ")]}, "tool_calls", counts(20, 9)
    ),
    usage=(12, 4, 8, 0, "upstream"),
    broken=sse(
        ROLE,
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
