"""An upstream and all that this process knows of it: may it be asked, how busy is it, how quick?"""

from tollway.deadlines import Deadlines
from tollway.upstreams.base import Upstream
from tollway.upstreams.health import Health, HealthStatus
from tollway.upstreams.places import Places

_LATENCY_SHARE = 0.2
"""Of the newest reply, in the latency that is kept."""


class Watched:
    """An upstream and what is known of it. `latency` is the seconds to the first byte lately, of
    whole replies and of streams; 0 where there was none yet."""

    __slots__ = ("deadlines", "health", "latency", "name", "places", "upstream")

    def __init__(
        self,
        upstream: Upstream,
        health: Health,
        places: Places,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 (frozen)
    ) -> None:
        self.name = upstream.name
        self.upstream = upstream
        self.health = health
        self.places = places
        self.deadlines = deadlines
        self.latency = [0.0, 0.0]

    def answered_after(self, seconds: float, streamed: bool) -> None:
        before = self.latency[streamed]
        self.latency[streamed] = before + (seconds - before) * _LATENCY_SHARE if before else seconds

    def may_be_asked(self) -> bool:
        health = self.health
        return (health.clear or health.may_be_asked()) and self.upstream.ready()

    def status(self) -> HealthStatus:
        status = self.health.status()
        if status.condition == "serving" and not self.upstream.ready():
            return HealthStatus("not running", 0.0, 0.0, "it does not run")
        return status
