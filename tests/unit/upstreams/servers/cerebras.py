from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    CACHED,
    OPENAI_CALL_STREAM,
    ROLE,
    WHOLE_CALL,
    Refusal,
    Shapes,
    chunk,
    counts,
    whole,
)

_TIMES = {"queue_time": 0.0003, "prompt_time": 0.0012, "completion_time": 0.004}
_USAGE = counts(12, 4, **CACHED)
CEREBRAS = Shapes(
    answer=sse(
        ROLE,
        chunk({"reasoning": "Two and two"}),
        chunk({"content": "4"}),
        chunk({}, "stop", usage=_USAGE, time_info=_TIMES),
    ),
    whole=whole({"content": "4", "reasoning": "Two and two"}, "stop", _USAGE, time_info=_TIMES),
    call=OPENAI_CALL_STREAM,
    whole_call=WHOLE_CALL,
    usage=(12, 4, 8, 0, "upstream"),
    broken=sse(ROLE, chunk({"content": "4"}), done=False),
    refusals=(
        Refusal(
            400,
            {
                "message": "Please reduce the length of the messages or completion. Current length "
                "is 42328 while limit is 40000",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            },
            "InvalidRequest",
            "context_length_exceeded",
            "messages",
        ),
        Refusal(
            429,
            {
                "message": "We're experiencing high traffic right now! Please try again soon.",
                "type": "too_many_requests_error",
                "param": "queue",
                "code": "queue_exceeded",
            },
            "Unavailable",
            "overloaded",
        ),
    ),
    reasoning="Two and two",
)
