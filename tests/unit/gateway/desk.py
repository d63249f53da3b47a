"""A router over upstreams that answer as their scripts say, for the tests of the route."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from tests.support.clock import FixedClock
from tests.unit.gateway.parts import ReplyLog, a_model, a_router, an_admission

from tollway.catalogue import Serving, Sticky
from tollway.deadlines import Deadlines
from tollway.errors import RequestError, UpstreamFailed
from tollway.gateway.relay import Silences, relay
from tollway.gateway.route import Router
from tollway.gateway.types import Admission, Meter
from tollway.upstreams.base import Ask, EventSink
from tollway.upstreams.watched import Watched
from tollway.wire.chat import ChatCompletion

WHOLE = msgspec.json.encode(
    {
        "id": "chatcmpl-theirs",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }
)
EVENT = b'{"id":"c","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}'
END = b'{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'


def failing(
    status: int | None = None,
    *,
    rest_seconds: float | None = None,
    was_sent: bool = True,
    kind: Callable[[str], RequestError] = UpstreamFailed,
) -> RequestError:
    error = kind("It failed.")
    error.upstream_status = status
    error.upstream_rest_seconds = rest_seconds
    error.was_sent = was_sent
    return error


class Upstream:
    """Answers as its `script` says, one element a request, and truthfully when that is used up."""

    counts_input_tokens = True

    def __init__(self, name: str, *script: RequestError | list[bytes], counted: int | None = None):
        self.name = name
        self.script: list[RequestError | Iterable[bytes]] = list(script)
        self.asks: list[Ask] = []
        self.runs = True
        self.gate: asyncio.Event | None = None
        self._counted = counted

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def ready(self) -> bool:
        return self.runs

    async def count_input_tokens(self, ask: Ask) -> int | None:
        return self._counted

    async def complete(self, ask: Ask) -> ChatCompletion:
        self.asks.append(ask)
        if self.gate is not None:
            await self.gate.wait()
        if self.script:
            said = self.script.pop(0)
            assert isinstance(said, RequestError)
            raise said
        return msgspec.json.decode(WHOLE, type=ChatCompletion)

    async def stream(self, ask: Ask, sink: EventSink) -> None:
        self.asks.append(ask)
        said = self.script.pop(0) if self.script else [EVENT, END]
        if isinstance(said, RequestError):
            raise said
        sink.opened(_Source())
        for event in said:
            sink.event(event)
        sink.flush()


class _Source:
    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abandon(self, error: RequestError) -> None: ...


class Desk:
    """A model `m1` served by these upstreams."""

    def __init__(
        self,
        *upstreams: Upstream,
        priorities: tuple[int, ...] = (),
        sticky: Sticky | None = None,
        deadlines: Deadlines | None = None,
        **options: Any,
    ) -> None:
        self.clock = FixedClock()
        self.upstreams = upstreams
        self.router: Router = a_router(*upstreams, clock=self.clock, **options)
        self.watched: dict[str, Watched] = {one.name: one for one in self.router.upstreams()}
        levels = priorities or (0,) * len(upstreams)
        self.model = a_model(
            servings=tuple(
                Serving(one.name, f"{one.name}s-name", 1, priority, deadlines)
                for one, priority in zip(upstreams, levels, strict=True)
            ),
            sticky=sticky,
        )
        self.meter = Meter()
        self.reply = ReplyLog()

    def admission(self, *, stream: bool = False, **fields: Any) -> Admission:
        return an_admission(model=self.model, stream=stream, **fields)

    async def ask(self, *, stream: bool = False) -> RequestError | None:
        self.meter, self.reply = Meter(), ReplyLog()
        admission = self.admission(stream=stream)
        try:
            await relay(self.router.route(admission), admission, self.reply, self.meter, Silences())
        except RequestError as error:
            return error
        return None

    @property
    def attempts(self) -> list[tuple[str, int | None]]:
        return [(attempt.upstream, attempt.status) for attempt in self.meter.attempts]

    @property
    def in_flight(self) -> list[int]:
        return [watched.places.in_flight for watched in self.watched.values()]


# --- places ---------------------------------------------------------------------------------------


async def settle_down() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Gated:
    """Upstreams that answer when they are told to, and the requests that run."""

    def __init__(self, *names: str, priorities: tuple[int, ...] = (), **places: Any) -> None:
        self.upstreams = [Upstream(name) for name in names]
        for upstream in self.upstreams:
            upstream.gate = asyncio.Event()
        self.desk = Desk(*self.upstreams, priorities=priorities, **places)
        self.tasks: list[asyncio.Task[str | RequestError]] = []

    async def start(self, count: int = 1) -> None:
        for _ in range(count):
            self.tasks.append(asyncio.create_task(self._ask()))
            await settle_down()

    async def _ask(self) -> str | RequestError:
        meter, admission = Meter(), self.desk.admission()
        try:
            await relay(self.desk.router.route(admission), admission, ReplyLog(), meter, Silences())
        except RequestError as error:
            return error
        assert meter.upstream is not None
        return meter.upstream

    def open(self, *indexes: int) -> None:
        for index in indexes:
            gate = self.upstreams[index].gate
            assert gate is not None
            gate.set()

    async def results(self) -> list[str | RequestError]:
        return await asyncio.gather(*self.tasks)
