"""The embedded model as an `Upstream`: queue, translation, n by fan-out, and errors in our own
words.

A request waits for its slots, is translated, goes to the child once for each choice and always as a
stream, and comes back as one stream. Only where the child refused or died does it find out why, by
asking it for the prompt's length.
"""

import asyncio
import importlib.util
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from tollway.errors import (
    InvalidRequest,
    RequestError,
    StartError,
    Unavailable,
    UpstreamFailed,
    context_exceeded,
)
from tollway.upstreams.base import Ask, EventSink, Upstream
from tollway.upstreams.embedded.assemble import Assembler
from tollway.upstreams.embedded.chunks import ChoiceMerger, ChoiceSink
from tollway.upstreams.embedded.process import RUNNER, Child, RunnerSettings, RunningChild
from tollway.upstreams.embedded.progress import Progress
from tollway.upstreams.embedded.slots import Slots
from tollway.upstreams.embedded.translate import ChildRequest, Fields, translate
from tollway.wire.chat import ChatCompletion

ALIAS = "embedded"
TOOL_CALL_OPENER = "<tool_call>["  # what template.jinja begins a call with
INPUT_TOKENS = "/chat/completions/input_tokens"
COUNT_SECONDS_MAX = 2.0
EXPLAIN_SECONDS_MAX = 5.0
RESTART_RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """`model_path` is a user's own GGUF file. `context_length` is of one request; None `threads`
    leaves one core free.

    `tool_call_opener` is for the own file: the text its template begins a tool call with, where
    that is known. Without it a required call is only asked for, not forced.
    """

    model_path: Path | None = None
    context_length: int = 4096
    parallel: int = 4
    threads: int | None = None
    queue_length: int = 32
    tool_call_opener: str | None = None


class ChildClient(Upstream, Protocol):
    """How the child is spoken to: an OpenAI-compatible upstream, and its own routes."""

    async def post_json(self, path: str, body: bytes) -> tuple[int, bytes]: ...


class _InputTokens(msgspec.Struct):
    input_tokens: int


def find_model(settings: EmbeddedSettings, data_dir: Path, *, progress: Progress) -> Path:
    """The file to run: the user's own, or the default one, fetched if need be. Raises
    `StartError`."""
    # Here, for what it fetches and unpacks with is 1 MB, of no use where another model is served.
    from tollway.upstreams.embedded.model_file import ensure_model, own_model

    if settings.model_path is not None:
        return own_model(settings.model_path)
    return ensure_model(data_dir, progress=progress)


def child_of(
    settings: EmbeddedSettings,
    model_file: Path,
    came_up: Callable[[str, str], None],
    went_down: Callable[[], Awaitable[None]],
    *,
    runner: Sequence[str] = RUNNER,
) -> Child:
    return Child(
        RunnerSettings(
            model_path=str(model_file),
            model_alias=ALIAS,
            context_length=settings.context_length,
            parallel=settings.parallel,
            threads=settings.threads or max(1, (os.cpu_count() or 1) - 1),
            chat_template=None if settings.model_path is not None else _template(),
        ),
        came_up,
        went_down,
        command=runner,
    )


MakeChild = Callable[[Callable[[str, str], None], Callable[[], Awaitable[None]]], RunningChild]
"""Takes `came_up(address, api_key)` and `went_down()`."""


class EmbeddedUpstream:
    """Implements `Upstream`. `connect(base_url, api_key)` makes the client for a child that came
    up."""

    counts_input_tokens = True

    def __init__(
        self,
        name: str,
        settings: EmbeddedSettings,
        child: MakeChild,
        connect: Callable[[str, str], ChildClient],
    ) -> None:
        self.name = name
        self._settings = settings
        self._connect = connect
        self._client: ChildClient | None = None
        own = settings.model_path is not None
        self._tool_call_opener = settings.tool_call_opener if own else TOOL_CALL_OPENER
        self._child = child(self._came_up, self._went_down)
        self._slots = Slots(settings.parallel, settings.queue_length, self._child.busy_slots)

    async def start(self) -> None:
        """Raises `StartError`."""
        if importlib.util.find_spec("xllamacpp") is None:
            raise StartError(
                "The embedded model needs xllamacpp, which is not installed: it exists for Linux"
                " and macOS only. Configure another upstream, or install xllamacpp."
            )
        await self._child.start()

    async def stop(self) -> None:
        await self._slots.stop()
        await self._child.stop()
        await self._went_down()

    def ready(self) -> bool:
        return self._child.ready()

    async def complete(self, ask: Ask) -> ChatCompletion:
        request = translate(ask, self._tool_call_opener)
        assembler = Assembler(request.choices)
        await self._run(ask, request, assembler)
        return assembler.completion()

    async def stream(self, ask: Ask, sink: EventSink) -> None:
        await self._run(ask, translate(ask, self._tool_call_opener), sink)

    async def count_input_tokens(self, ask: Ask) -> int | None:
        """Raises `InvalidRequest` for what `complete` would raise it for before asking the
        child."""
        request = translate(ask, self._tool_call_opener)
        if self._client is None:
            return None
        status, body = await self._post(
            self._client, INPUT_TOKENS, request.fields, COUNT_SECONDS_MAX
        )
        return msgspec.json.decode(body, type=_InputTokens).input_tokens if status == 200 else None

    def _came_up(self, address: str, api_key: str) -> None:
        self._client = self._connect(address, api_key)

    async def _went_down(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.stop()

    async def _run(self, ask: Ask, request: ChildRequest, sink: EventSink) -> None:
        self._usable_client()  # before the queue: there is nothing to wait for
        merger = ChoiceMerger(
            sink,
            request.choices,
            call_is_forced=request.call_is_forced,
            top_logprobs=request.top_logprobs,
        )
        async with self._slots.take(request.choices) as width:
            await self._run_choices(self._usable_client(), ask, request, merger, width)
        merger.finish()

    async def _run_choices(
        self,
        client: ChildClient,
        ask: Ask,
        request: ChildRequest,
        merger: ChoiceMerger,
        width: int,
    ) -> None:
        waiting = iter(list(enumerate(merger.choices)))

        async def work() -> None:
            for index, choice in waiting:
                await self._run_choice(client, ask, request, index, choice)

        try:
            # One choice that fails ends them all: cancelling closes their connections to the child.
            async with asyncio.TaskGroup() as group:
                for _ in range(width):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _run_choice(
        self, client: ChildClient, ask: Ask, request: ChildRequest, index: int, choice: ChoiceSink
    ) -> None:
        to_child = msgspec.structs.replace(ask, model=ALIAS, fields=request.fields_of(index))
        try:
            await client.stream(to_child, choice)
        except (InvalidRequest, UpstreamFailed) as error:
            if choice.opened_once:
                raise
            raise await self._explained(client, request, error) from None
        choice.check_complete()

    async def _explained(
        self, client: ChildClient, request: ChildRequest, error: RequestError
    ) -> RequestError:
        """The child's refusal in our own words. Its words are a parser's, and the client's
        `Upstream` does not show them."""
        status, body = await self._post(client, INPUT_TOKENS, request.fields, EXPLAIN_SECONDS_MAX)
        if status == 200:
            counted = msgspec.json.decode(body, type=_InputTokens).input_tokens
            if counted >= self._settings.context_length:
                return context_exceeded(self._settings.context_length, counted)
            return _refused(request) if isinstance(error, InvalidRequest) else error
        return _refused(request) if status else error

    def _usable_client(self) -> ChildClient:
        if self._client is None:
            raise Unavailable(
                "The embedded model is starting again. Try again in a few seconds.",
                retry_after_seconds=RESTART_RETRY_SECONDS,
                was_sent=False,
            )
        return self._client

    async def _post(
        self, client: ChildClient, path: str, fields: Fields, seconds_max: float
    ) -> tuple[int, bytes]:
        """Status 0 where the child does not answer, or not in time."""
        try:
            async with asyncio.timeout(seconds_max):
                return await client.post_json(path, msgspec.json.encode(fields))
        except (RequestError, TimeoutError):
            return 0, b""


def _template() -> str:
    return Path(__file__).with_name("template.jinja").read_text(encoding="utf-8")


def _refused(request: ChildRequest) -> InvalidRequest:
    # The child looks at the tools only where there is no response format.
    if "response_format" in request.fields:
        param, why = "response_format", f"its schema {_SCHEMA_TROUBLE}"
    elif "tools" in request.fields:
        param, why = "tools", f"the parameters of one of them {_SCHEMA_TROUBLE}"
    else:
        param, why = "messages", "their roles are in an order that its template does not take"
    return InvalidRequest(
        f"The embedded model cannot use this request's {param}: {why}.", param=param
    )


_SCHEMA_TROUBLE = (
    "may have an unknown type, a $ref that leads nowhere, or a pattern that it cannot follow"
)
