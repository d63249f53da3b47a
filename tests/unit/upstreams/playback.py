"""Plays a server's own bytes to the gateway over real HTTP, and says what a client gets of them."""

import json
from dataclasses import dataclass, field
from typing import Any

from tests.support.answers import Answer, Pause, Step, Write
from tests.support.fake_upstream import FakeUpstream
from tests.unit.gateway.parts import ReplyLog, an_admission

from tollway.errors import RequestError
from tollway.gateway.relay import Silences, relay
from tollway.gateway.settle import outcome_of
from tollway.gateway.types import Admission, Meter
from tollway.ledger.base import Outcome, Settlement
from tollway.upstreams.base import Ask, Upstream
from tollway.upstreams.dialects import Dialect
from tollway.upstreams.openai import OpenAICompatible

SETTLEMENT = Settlement(17, 0, 83)
EVENTS = "text/event-stream; charset=utf-8"


def sse(*events: object, done: bool = True, end: str = "\n\n", space: str = " ") -> bytes:
    """Text is written as it is, a comment or a line of its own; all else as an event's JSON."""
    lines = [
        event if isinstance(event, str) else f"data:{space}{json.dumps(event, ensure_ascii=False)}"
        for event in events
    ]
    return "".join(
        line + end for line in [*lines, *([f"data:{space}[DONE]"] if done else [])]
    ).encode()


def bytes_of(
    body: bytes,
    *,
    status: int = 200,
    media_type: str = EVENTS,
    headers: dict[str, str] | None = None,
) -> Answer:
    def steps(_: object) -> list[Step]:
        return [Write(body), Pause(0)]

    return Answer(
        steps,
        status=status,
        headers=(("content-type", media_type), *(headers or {}).items()),
        framing="chunked",
    )


def json_of(body: object, *, status: int = 200, **headers: str) -> Answer:
    data = json.dumps(body).encode()
    return bytes_of(data, status=status, media_type="application/json", headers=headers)


@dataclass(slots=True)
class Played:
    """What the client got, and what it is charged for."""

    written: bytes
    body: bytes | None
    usage_event: bytes | None
    error: RequestError | None
    outcome: Outcome
    meter: Meter
    chunks: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def content(self) -> str:
        return self._said("content")

    @property
    def reasoning(self) -> str:
        return self._said("reasoning_content")

    @property
    def finish(self) -> str | None:
        ends = [choice["finish_reason"] for choice in self._choices() if choice["finish_reason"]]
        return ends[0] if ends else None

    @property
    def calls(self) -> list[tuple[str, str, str]]:
        """Each call put together as a client does: its id, name and arguments."""
        calls: dict[int, list[str]] = {}
        for message in self.messages:
            for number, part in enumerate(message.get("tool_calls") or ()):
                call = calls.setdefault(part.get("index", number), ["", "", ""])
                call[0] += part.get("id") or ""
                call[1] += part.get("function", {}).get("name") or ""
                call[2] += part.get("function", {}).get("arguments") or ""
        return [(id_, name, arguments) for _, (id_, name, arguments) in sorted(calls.items())]

    @property
    def extra_contents(self) -> list[Any]:
        """Of each part of a call."""
        parts = (part for m in self.messages for part in m.get("tool_calls") or ())
        return [part.get("extra_content") for part in parts]

    @property
    def types(self) -> list[Any]:
        """Of each part that begins a call."""
        parts = (part for m in self.messages for part in m.get("tool_calls") or ())
        return [part.get("type") for part in parts if part.get("id")]

    @property
    def tokens(self) -> tuple[int, int, int, int, str]:
        o = self.outcome
        return o.input_tokens, o.output_tokens, o.cached_tokens, o.reasoning_tokens, o.source

    def _said(self, name: str) -> str:
        return "".join(message.get(name) or "" for message in self.messages)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Of each choice, or each part of one."""
        return [choice.get("delta") or choice.get("message") or {} for choice in self._choices()]

    def _choices(self) -> list[dict[str, Any]]:
        return [choice for chunk in self.chunks for choice in chunk["choices"]]


class OneTry:
    """A `Route` to one upstream: what it says is the answer."""

    def __init__(self, upstream: Upstream, ask: Ask) -> None:
        self.ask = ask
        self._upstream = upstream

    def enter(self) -> Upstream | None:
        return self._upstream

    async def wait(self) -> Upstream:
        raise AssertionError("it is always there")

    def answered(self) -> None: ...

    def served(self) -> None: ...

    def failed(self, error: RequestError) -> None: ...

    def abandoned(self) -> None: ...

    async def may_try_again(self, error: RequestError) -> bool:
        return False

    def let_go(self) -> None: ...


async def play(
    server: FakeUpstream,
    answer: Answer,
    dialect: Dialect,
    *,
    streamed: bool,
    api_version: str | None = None,
    model: str = "their/model",
    **request: Any,
) -> Played:
    server.answer(answer)
    admission = an_admission(stream=streamed, **request)
    upstream = OpenAICompatible(
        dialect.name, server.base_url, "sk-key", dialect=dialect, api_version=api_version
    )
    try:
        return await _played(upstream, admission, model)
    finally:
        await upstream.stop()


async def _played(upstream: OpenAICompatible, admission: Admission, model: str) -> Played:
    ask = Ask(admission.call.request_id, model, admission.parsed.fields, 500)
    route = OneTry(upstream, ask)
    meter, reply, error = Meter(), ReplyLog(), None
    try:
        answer = await relay(route, admission, reply, meter, Silences())
    except RequestError as raised:
        error = raised
        outcome = outcome_of(admission, meter, 1001.0)
    else:
        outcome = outcome_of(admission, meter, 1001.0)
        answer.finish(reply, outcome, SETTLEMENT)
    return Played(
        reply.written,
        reply.body,
        reply.usage_event,
        error,
        outcome,
        meter,
        _chunks(reply),
    )


def _chunks(reply: ReplyLog) -> list[dict[str, Any]]:
    if reply.body is not None:
        return [json.loads(reply.body)]
    events = reply.written.decode().split("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in events if event[:1] == "d"]
