"""A clock that stands still until a test moves it."""


class FixedClock:
    """Implements `tollway.clock.Clock`. Both times move together; `step` moves only the wall
    clock, as an operator might."""

    def __init__(self, now: float = 1_795_420_800.0, monotonic: float = 1_000.0) -> None:
        self._now = now
        self._monotonic = monotonic

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "time does not run backwards; to set the wall clock back, use step"
        self._now += seconds
        self._monotonic += seconds

    def step(self, seconds: float) -> None:
        self._now += seconds
