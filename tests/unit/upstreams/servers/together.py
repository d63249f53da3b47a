from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    OPENAI_CALL_STREAM,
    ROLE,
    WHOLE_CALL,
    Refusal,
    Shapes,
    chunk,
    counts,
    whole,
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
        ROLE,
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
