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
    usage_chunk,
    whole,
)

OPENAI = Shapes(
    answer=sse(
        chunk(
            {"role": "assistant", "content": "", "refusal": None},
            of={"logprobs": None},
            service_tier="default",
            system_fingerprint="fp_1",
            obfuscation="x",
        ),
        chunk({"content": "4"}, of={"logprobs": None}, service_tier="default", obfuscation="abc"),
        chunk({}, "stop", of={"logprobs": None}, service_tier="default"),
        usage_chunk(counts(12, 4, **CACHED, **THOUGHT)),
    ),
    whole=whole(
        {"content": "4", "refusal": None, "annotations": []},
        "stop",
        counts(12, 4, **CACHED, **THOUGHT),
        service_tier="default",
    ),
    call=OPENAI_CALL_STREAM,
    whole_call=WHOLE_CALL,
    usage=(12, 4, 8, 2, "upstream"),
    broken=sse(
        ROLE,
        chunk({"content": "4"}),
        {"error": {"message": "The server had an error.", "type": "server_error", "code": None}},
    ),
    refusals=(
        Refusal(
            400,
            {
                "error": {
                    "message": "This model's maximum context length is 8192 tokens. However, your "
                    "messages resulted in 9000 tokens.",
                    "type": "invalid_request_error",
                    "param": "messages",
                    "code": "context_length_exceeded",
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
                    "message": "Unsupported value: 'temperature' does not support 0.5 with this "
                    "model. Only the default (1) value is supported.",
                    "type": "invalid_request_error",
                    "param": "temperature",
                    "code": "unsupported_value",
                }
            },
            "InvalidRequest",
            "unsupported_parameter",
            "temperature",
        ),
        Refusal(
            429,
            {
                "error": {
                    "message": "Rate limit reached for requests",
                    "type": "requests",
                    "param": None,
                    "code": "rate_limit_exceeded",
                }
            },
            "Unavailable",
            "overloaded",
            headers=(("retry-after", "7"),),
        ),
        Refusal(
            429,
            {
                "error": {
                    "message": "You exceeded your current quota, please check your plan.",
                    "type": "insufficient_quota",
                    "param": None,
                    "code": "insufficient_quota",
                }
            },
            "Unavailable",
            "unavailable",
        ),
        Refusal(
            401,
            {"error": {"message": "Incorrect API key provided: sk-1", "code": "invalid_api_key"}},
            "Unavailable",
            "unavailable",
        ),
    ),
)
