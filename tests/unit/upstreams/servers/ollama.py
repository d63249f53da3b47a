from typing import Any

from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    Refusal,
    Shapes,
    a_call,
    chunk,
    counts,
    usage_chunk,
    whole,
)


def _ollama(delta: Any, finish: str | None = None) -> dict[str, Any]:
    return chunk(
        {"role": "assistant", "content": "", **delta}, finish, system_fingerprint="fp_ollama"
    )


OLLAMA = Shapes(
    answer=sse(
        _ollama({"reasoning": "Two and"}),
        _ollama({"reasoning": " two"}),
        _ollama({"content": "4"}),
        _ollama({}, "stop"),
        usage_chunk(counts(12, 4)),
    ),
    whole=whole({"content": "4", "reasoning": "Two and two"}, "stop", counts(12, 4)),
    call=sse(
        _ollama({"tool_calls": [a_call(index=0)]}),
        _ollama({}, "tool_calls"),
        usage_chunk(counts(20, 9)),
    ),
    whole_call=whole({"content": "", "tool_calls": [a_call(index=0)]}, "tool_calls", counts(20, 9)),
    usage=(12, 4, 0, 0, "upstream"),
    broken=sse(_ollama({"content": "4"}), done=False),
    refusals=(
        Refusal(
            404,
            {
                "error": {
                    "message": "model 'x' not found",
                    "type": "not_found_error",
                    "param": None,
                    "code": None,
                }
            },
            "Unavailable",
            "unavailable",
        ),
        Refusal(
            503,
            {
                "error": {
                    "message": "server busy, please try again. maximum pending requests exceeded",
                    "type": "api_error",
                    "param": None,
                    "code": None,
                }
            },
            "Unavailable",
            "overloaded",
        ),
        Refusal(
            400,
            {"error": {"message": "invalid image input", "type": "invalid_request_error"}},
            "InvalidRequest",
            "invalid_value",
        ),
    ),
    reasoning="Two and two",
)
