from typing import Any

from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    ARGUMENTS,
    CACHED,
    ROLE,
    Refusal,
    Shapes,
    chunk,
    counts,
    whole,
)


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


MISTRAL = Shapes(
    answer=sse(
        ROLE,
        chunk({"content": [_thinking("Two and")]}),
        chunk({"content": [_thinking(" two")]}),
        chunk({"content": [{"type": "text", "text": "4"}]}),
        chunk({"content": ""}, "stop", usage=counts(12, 4, **CACHED)),
    ),
    whole=whole(
        {"content": [_thinking("Two and two"), {"type": "text", "text": "4"}], "tool_calls": None},
        "stop",
        counts(12, 4, **CACHED),
    ),
    call=sse(
        ROLE,
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
    broken=sse(ROLE, chunk({"content": "4"}), chunk({"content": ""}, "error")),
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
