from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    ADD,
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
        ROLE,
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
    broken=sse(ROLE, chunk({"content": "4"}), chunk({}, "abort")),
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
