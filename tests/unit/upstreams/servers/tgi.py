from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import Refusal, Shapes, chunk, counts, usage_chunk, whole

TGI = Shapes(
    answer=sse(
        chunk({"role": "assistant", "content": ""}),
        chunk({"role": "assistant", "content": "4"}, system_fingerprint="3.0.0-native"),
        chunk({"role": "assistant", "content": ""}, "eos_token"),
        usage_chunk(counts(12, 4)),
        space="",
    ),
    whole=whole({"content": "4"}, "stop", counts(12, 4)),
    call=sse(
        chunk(
            {
                "role": "assistant",
                "tool_calls": {
                    "index": 0,
                    "id": "",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a": 2,'},
                },
            }
        ),
        chunk(
            {
                "role": "assistant",
                "tool_calls": {
                    "index": 0,
                    "id": "",
                    "type": "function",
                    "function": {"name": None, "arguments": ' "b": 2}'},
                },
            }
        ),
        chunk({"role": "assistant", "content": ""}, "eos_token"),
        usage_chunk(counts(20, 9)),
        space="",
    ),
    whole_call=whole(
        {
            "tool_calls": [
                {
                    "id": 0,
                    "type": "function",
                    "function": {"description": None, "name": "add", "arguments": {"a": 2, "b": 2}},
                }
            ]
        },
        "eos_token",
        counts(20, 9),
    ),
    usage=(12, 4, 0, 0, "upstream"),
    broken=sse(
        chunk({"role": "assistant", "content": "4"}),
        {"error": "Request failed during generation", "error_type": "generation"},
        done=False,
        space="",
    ),
    refusals=(
        Refusal(
            422,
            {
                "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= "
                "4096. Given: 5013 `inputs` tokens and 128 `max_new_tokens`",
                "error_type": "validation",
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(
            422,
            {
                "error": "Input validation error: `top_k` must be strictly positive",
                "error_type": "validation",
            },
            "InvalidRequest",
            "invalid_value",
        ),
        Refusal(
            429,
            {"error": "Model is overloaded", "error_type": "overloaded"},
            "Unavailable",
            "overloaded",
        ),
        Refusal(
            424,
            {"error": "Request failed during generation", "error_type": "generation"},
            "UpstreamFailed",
            "upstream_error",
        ),
    ),
)
