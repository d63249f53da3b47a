"""Streams that were relayed from an upstream that plays its events, for the tests of the relay."""

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from tests.unit.gateway.parts import ReplyLog, a_router, an_admission

from tollway.errors import RequestError
from tollway.gateway.relay import Silences, relay
from tollway.gateway.settle import outcome_of
from tollway.gateway.types import Admission, Meter, Route
from tollway.ledger.base import Settlement
from tollway.upstreams.base import Ask, EventSink
from tollway.wire.chat import ChatCompletion

SETTLEMENT = Settlement(17, 0, 83)
COMPLETION_ID = "chatcmpl-" + "1" * 32


class SourceLog:
    def __init__(self) -> None:
        self.paused: list[bool] = []
        self.abandoned: RequestError | None = None

    def pause_reading(self) -> None:
        self.paused.append(True)

    def resume_reading(self) -> None:
        self.paused.append(False)

    def abandon(self, error: RequestError) -> None:
        self.abandoned = error


class Upstream:
    """Plays events into the sink, a flush after each, or returns a whole reply."""

    name = "gpu-1"

    counts_input_tokens = True

    def __init__(
        self,
        events: Iterable[bytes] = (),
        *,
        whole: ChatCompletion | None = None,
        error: RequestError | None = None,
        then: Callable[[], Awaitable[None]] | None = None,
        reads: int = 1,
    ) -> None:
        self.source = SourceLog()
        self.asked: Ask | None = None
        self._events = list(events)
        self._whole = whole
        self._error = error
        self._then = then
        self._reads = reads

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def ready(self) -> bool:
        return True

    async def count_input_tokens(self, ask: Ask) -> int | None:
        return None

    async def complete(self, ask: Ask) -> ChatCompletion:
        if self._error is not None:
            raise self._error
        assert self._whole is not None
        return self._whole

    async def stream(self, ask: Ask, sink: EventSink) -> None:
        self.asked = ask
        if self._events:
            sink.opened(self.source)
        for number, event in enumerate(self._events, 1):
            sink.event(event)
            if number % self._reads == 0:
                sink.flush()
        sink.flush()
        if self._then is not None:
            await self._then()
        if self.source.abandoned is not None:
            raise self.source.abandoned
        if self._error is not None:
            raise self._error


def route_to(upstream: Upstream, admission: Admission) -> Route:
    return a_router(upstream).route(admission)


def chunk(delta: dict[str, Any] | None = None, **changes: Any) -> bytes:
    choice: dict[str, Any] = {
        "index": changes.pop("index", 0),
        "delta": delta or {},
        "finish_reason": changes.pop("finish", None),
    }
    event: dict[str, Any] = {
        "id": "chatcmpl-theirs",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "theirs",
        "choices": [choice],
        **changes,
    }
    return json.dumps({k: v for k, v in event.items() if v is not ...}).encode()


def text(content: str, **changes: Any) -> bytes:
    return chunk({"content": content}, **changes)


STOP = chunk(finish="stop")


class Relayed:
    """A stream that was relayed: what the client got."""

    def __init__(self, admission: Admission, meter: Meter, reply: ReplyLog) -> None:
        self.admission, self.meter, self.reply = admission, meter, reply
        self.error: RequestError | None = None

    @property
    def chunks(self) -> list[dict[str, Any]]:
        events = self.reply.written.decode().split("\n\n")
        assert events.pop() == ""
        return [json.loads(e.removeprefix("data: ")) for e in events if not e.startswith(":")]

    @property
    def texts(self) -> list[str | None]:
        return [c["choices"][0]["delta"].get("content") for c in self.chunks]

    @property
    def finishes(self) -> list[str]:
        return [
            choice["finish_reason"]
            for c in self.chunks
            for choice in c["choices"]
            if choice["finish_reason"]
        ]


async def relayed(upstream: Upstream, **request: Any) -> Relayed:
    admission = an_admission(stream=True, **request)
    result = Relayed(admission, Meter(), ReplyLog())
    try:
        answer = await relay(
            route_to(upstream, admission), admission, result.reply, result.meter, Silences()
        )
    except RequestError as error:
        result.error = error
    else:
        outcome = outcome_of(admission, result.meter, 1001.0)
        answer.finish(result.reply, outcome, SETTLEMENT)
    return result
