"""Which part of a limit is this replica's own while the replicas cannot count together.

All shares of a limit add up to it, so that no span admits more than the limit in this state either.
What does not divide evenly goes to some replicas, others for each key.

A replica counts for `keep_seconds` after it was last heard of, by the listener's own clock: a
Valkey that is back hears of one replica after the other, and too few would make shares too large.
"""

from collections.abc import Iterable
from zlib import crc32


class Shares:
    def __init__(self, replica: str, keep_seconds: float) -> None:
        self._replica = replica
        self._keep_seconds = keep_seconds
        self._heard_at = {replica: 0.0}
        self._rank = 0
        self.replicas = 1

    def know(self, live: Iterable[str], now: float) -> None:
        """This replica is one of them, whether it is named or not."""
        self._heard_at |= dict.fromkeys([*live, self._replica], now)
        kept = {name: at for name, at in self._heard_at.items() if now - at < self._keep_seconds}
        self._heard_at = kept
        self._rank = sorted(kept).index(self._replica)
        self.replicas = len(kept)

    def know_again(self, now: float) -> None:
        """After a time in which nothing could be heard."""
        self.know(list(self._heard_at), now)

    def of(self, limit: int, key: str) -> int:
        each, left_over = divmod(limit, self.replicas)
        turn = (self._rank + crc32(key.encode())) % self.replicas
        return each + (turn < left_over)
