"""An upstream that is looked at and never asked."""

from tollway.upstreams.base import Ask, EventSink
from tollway.wire.chat import ChatCompletion


class StillUpstream:
    counts_input_tokens = True

    def __init__(self, name: str, *, runs: bool) -> None:
        self.name = name
        self.runs = runs

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def ready(self) -> bool:
        return self.runs

    async def complete(self, ask: Ask) -> ChatCompletion:
        raise AssertionError

    async def stream(self, ask: Ask, sink: EventSink) -> None:
        raise AssertionError

    async def count_input_tokens(self, ask: Ask) -> int | None:
        raise AssertionError


def an_upstream(name: str, *, runs: bool = True) -> StillUpstream:
    return StillUpstream(name, runs=runs)
