from tests.unit.upstreams.playback import sse
from tests.unit.upstreams.servers.shapes import (
    OPENAI_CALL_STREAM,
    ROLE,
    WHOLE_CALL,
    Refusal,
    Shapes,
    chunk,
    counts,
    usage_chunk,
    whole,
)

GENERIC = Shapes(
    answer=sse(ROLE, chunk({"content": "4"}), chunk({}, "stop"), usage_chunk(counts(12, 4))),
    whole=whole({"content": "4"}, "stop", counts(12, 4)),
    call=OPENAI_CALL_STREAM,
    whole_call=WHOLE_CALL,
    usage=(12, 4, 0, 0, "upstream"),
    broken=sse(ROLE, chunk({"content": "4"}), done=False),
    refusals=(
        Refusal(500, "<html>oops</html>", "UpstreamFailed", "upstream_error"),
        Refusal(502, {}, "UpstreamFailed", "upstream_error"),
        Refusal(504, {}, "UpstreamTimeout", "upstream_timeout"),
    ),
)
