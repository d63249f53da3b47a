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

_FILTERED = {"hate": {"filtered": False, "severity": "safe"}}
AZURE = Shapes(
    answer=sse(
        {
            "id": "",
            "object": "",
            "created": 0,
            "model": "",
            "choices": [],
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _FILTERED}],
        },
        chunk({"role": "assistant", "content": "", "refusal": None}, of={"logprobs": None}),
        chunk({"content": "4"}, of={"content_filter_results": _FILTERED, "logprobs": None}),
        chunk({}, "stop", of={"content_filter_results": {}, "logprobs": None}),
        usage_chunk(counts(12, 4, **CACHED, **THOUGHT)),
    ),
    whole=whole(
        {"content": "4", "refusal": None},
        "stop",
        counts(12, 4, **CACHED, **THOUGHT),
        prompt_filter_results=[{"prompt_index": 0, "content_filter_results": _FILTERED}],
    ),
    call=OPENAI_CALL_STREAM,
    whole_call=WHOLE_CALL,
    usage=(12, 4, 8, 2, "upstream"),
    broken=sse(ROLE, chunk({"content": "4"}), done=False),
    refusals=(
        Refusal(
            400,
            {
                "error": {
                    "message": "The response was filtered due to the prompt triggering Azure "
                    "OpenAI's content management policy.",
                    "type": None,
                    "param": "prompt",
                    "code": "content_filter",
                    "status": 400,
                    "innererror": {"code": "ResponsibleAIPolicyViolation"},
                }
            },
            "InvalidRequest",
            "invalid_value",
            "messages",
        ),
        Refusal(
            404,
            {
                "error": {
                    "code": "DeploymentNotFound",
                    "message": "The API deployment for this resource does not exist.",
                }
            },
            "Unavailable",
            "unavailable",
        ),
        Refusal(
            401,
            {"statusCode": 401, "message": "Unauthorized. Access token is missing or invalid."},
            "Unavailable",
            "unavailable",
        ),
        Refusal(
            429,
            {"error": {"code": "429", "message": "Requests have exceeded the token rate limit."}},
            "Unavailable",
            "overloaded",
            headers=(("retry-after", "26"),),
        ),
    ),
)
