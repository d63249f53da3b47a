"""For whoever watches the server: does it run, is it ready, what does it count."""

from collections.abc import Callable

import msgspec
from msgspec import Struct

_encode = msgspec.json.Encoder().encode


class Health(Struct, frozen=True, omit_defaults=True):
    """`status` is ok, ready or unavailable; `reasons` why it is unavailable."""

    status: str
    reasons: list[str] | None = None


_RUNNING = _encode(Health("ok"))


def healthz() -> tuple[int, bytes]:
    """That this is answered at all is the news: the event loop runs."""
    return 200, _RUNNING


def readyz(not_ready: Callable[[], list[str]]) -> tuple[int, bytes]:
    reasons = not_ready()
    if reasons:
        return 503, _encode(Health("unavailable", reasons))
    return 200, _encode(Health("ready"))
