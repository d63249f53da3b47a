"""An upstream as its operator sees it."""

from typing import Literal

from msgspec import Struct

from tollway.clock import iso
from tollway.upstreams.places import UNLIMITED
from tollway.upstreams.watched import Watched


class FirstByte(Struct, frozen=True):
    """Milliseconds lately until the first byte of a reply; null where there was none yet."""

    chat: int | None
    chat_stream: int | None


class UpstreamObject(Struct, frozen=True, rename="camel"):
    """`condition` is serving where nothing speaks against it, and `why` then empty;
    `askedAgainSeconds` is null where that does not depend on time."""

    object: Literal["upstream"]
    name: str
    condition: str
    since: str
    why: str
    asked_again_seconds: float | None
    ready: bool
    in_flight: int
    concurrent_requests: int | None
    waiting: int
    requests: int
    failures: int
    circuit_opened: int
    set_aside: int
    first_byte_ms: FirstByte


def upstream_object(watched: Watched, now: float) -> UpstreamObject:
    health, places = watched.health, watched.places
    status = watched.status()
    chat, chat_stream = (round(seconds * 1000) or None for seconds in watched.latency)
    return UpstreamObject(
        object="upstream",
        name=watched.name,
        condition=status.condition,
        since=iso(now - status.seconds),
        why=status.why,
        asked_again_seconds=round(status.again_seconds, 1) or None,
        ready=watched.may_be_asked(),
        in_flight=places.in_flight,
        concurrent_requests=None if places.limit == UNLIMITED else places.limit,
        waiting=places.waiting,
        requests=health.requests,
        failures=health.failures,
        circuit_opened=health.times_opened,
        set_aside=health.times_set_aside,
        first_byte_ms=FirstByte(chat, chat_stream),
    )
