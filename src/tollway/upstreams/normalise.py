"""Replies in one form, whichever server they come from: what a client never has to know.

- Reasoning is in `reasoning_content`, whether the server says that, `reasoning`, or puts thinking
  parts into the content.
- A reply ends with one of OpenAI's four words, and with `tool_calls` whenever there are calls.
- A call has an id; in a stream, each is numbered from 0, and its id and name are said once.
- A role is said once.

Most servers keep to OpenAI's types, and their replies are decoded as those. One that does not fit
is decoded as whatever it is, mended and read again (`mended_chunk`, `mended_completion`): that is
slower, and only what is odd pays for it.
"""

import re
from collections.abc import Iterator
from typing import Any, TypeGuard, cast

import msgspec
from msgspec import UNSET

from tollway.upstreams.dialects import ENDS
from tollway.wire.chat import ChatCompletion, Choice, ExtraContent
from tollway.wire.events import Chunk, ChunkChoice, Delta, DeltaToolCall

_NO_INDEX = -1
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_Json = dict[str, Any]


def finish_reason(reason: str, *, has_calls: bool = False) -> str | None:
    """Our API's word for an upstream's; None where it means that the upstream failed (`abort`,
    `error`, `insufficient_system_resource`)."""
    known = ENDS.get(reason)
    if known is None and reason.startswith("content_filter:"):  # Gemini: what was filtered follows
        return "content_filter"
    if known in ("stop", "tool_calls"):
        return "tool_calls" if has_calls else "stop"
    return known


# --- streams --------------------------------------------------------------------------------------


class ChoiceState:
    """What is known of one choice of a stream so far. `ids` is what the id of a call begins with
    that its server gave none."""

    __slots__ = ("_calls", "_ids", "begun", "finished")

    def __init__(self, ids: str) -> None:
        self._ids = ids
        self.begun = False
        self.finished = False
        self._calls: _Calls | None = None

    @property
    def has_calls(self) -> bool:
        return self._calls is not None

    def place(self, part: DeltaToolCall) -> None:
        """Gives this part of a call our number."""
        if self._calls is None:
            self._calls = _Calls(self._ids)
        self._calls.place(part)


class _Calls:
    """A choice's calls, numbered. Not all servers number: some give every call the same index, some
    none; then a new id, or a name without one, is a new call."""

    __slots__ = ("_current", "_ids", "_names", "_numbers")

    def __init__(self, ids: str) -> None:
        self._ids = ids
        self._names: list[str | None] = []
        self._current: dict[int, int] = {}  # the call that an index of theirs stands for now
        self._numbers: dict[str, int] = {}  # by their ids

    def place(self, part: DeltaToolCall) -> None:
        function = part.function or None
        name = None if function is None else function.name
        number = self._numbers.get(part.id) if part.id else None
        if number is None:
            number = self._current.get(part.index)
            if number is None or (name and (part.id or part.index == _NO_INDEX)):
                self._begin(part, name)
                return
        self._current[part.index] = number
        part.index = number
        part.id = part.type = UNSET
        if function is not None and name:
            if name == self._names[number]:
                function.name = None
            else:
                self._names[number] = self._names[number] or name

    def _begin(self, part: DeltaToolCall, name: str | None) -> None:
        number = len(self._names)
        self._names.append(name)
        self._current[part.index] = number
        if part.id:
            self._numbers[part.id] = number
        part.index = number
        part.id = part.id or f"{self._ids}{number}"
        part.type = "function"


def normalise_delta(choice: ChunkChoice, state: ChoiceState) -> bool:
    """False where the choice ends in a way that means the upstream failed."""
    delta = choice.delta
    if delta.reasoning is not UNSET:
        _unify_reasoning(delta)
    if not state.begun:
        state.begun = True
        delta.role = "assistant"
    elif delta.role is not UNSET:
        delta.role = UNSET
    if delta.tool_calls:
        for part in delta.tool_calls:
            state.place(part)
    elif delta.tool_calls is not UNSET:
        delta.tool_calls = UNSET
    if delta.role and not delta.content:
        delta.content = ""
    if not choice.finish_reason:
        choice.finish_reason = None
        return True
    choice.finish_reason = finish_reason(choice.finish_reason, has_calls=state.has_calls)
    state.finished = choice.finish_reason is not None
    return state.finished


def _unify_reasoning(delta: Delta) -> None:
    if delta.reasoning:
        delta.reasoning_content = delta.reasoning
    delta.reasoning = UNSET


# --- whole replies --------------------------------------------------------------------------------


def normalise_choice(choice: Choice, ids: str) -> None:
    """As `normalise_delta`, for a choice of a whole reply whose end is no failure; `ids` as a
    `ChoiceState` has it."""
    message = choice.message
    if message.reasoning is not UNSET:
        if message.reasoning:
            message.reasoning_content = message.reasoning
        message.reasoning = UNSET
    calls = message.tool_calls or ()
    for number, call in enumerate(calls):
        call.id = call.id or f"{ids}{number}"
    if not calls:
        message.tool_calls = UNSET
        if message.content is None and message.refusal is None:
            message.content = ""  # it was cut while it thought; OpenAI refuses null that comes back
    elif not message.content:
        message.content = None
    choice.finish_reason = finish_reason(choice.finish_reason or "stop", has_calls=bool(calls))


# --- what does not fit OpenAI's types -------------------------------------------------------------


def mended_chunk(payload: bytes) -> Chunk | None:
    """The event of a stream that could not be decoded as one; None where it is none at all."""
    document = _object(payload)
    if document is None:
        return None
    _mend_names(document)
    for choice in _objects(document, "choices"):
        _mend_index(choice)
        _mend(choice, "delta")
    return _converted(document, Chunk)


def mended_completion(body: bytes) -> ChatCompletion | None:
    document = _object(body)
    if document is None:
        return None
    _mend_names(document)
    for choice in _objects(document, "choices"):
        _mend_index(choice)
        _mend(choice, "message")
    return _converted(document, ChatCompletion)


def _object(data: bytes) -> _Json | None:
    try:
        value: object = msgspec.json.decode(data.removeprefix(_BYTE_ORDER_MARK))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if _is_object(value) else None


def _mend_names(document: _Json) -> None:
    """Some number their replies. What else is no text says nothing."""
    for key in ("id", "system_fingerprint", "service_tier"):
        if not isinstance(value := document.get(key), str):
            document.pop(key, None)
            if type(value) in (int, float):
                document[key] = str(value)


def _mend_index(choice: _Json) -> None:
    """A part of a stream that has none is of the first choice. A whole choice has one: without, it
    may be anything."""
    index: object = choice.get("index")
    if index is None:
        choice.pop("index", None)
    elif (isinstance(index, float) and index.is_integer()) or (
        isinstance(index, str) and re.fullmatch(r"[0-9]{1,3}", index)
    ):
        choice["index"] = int(index)


def _converted(document: object, type_: Any) -> Any:
    try:
        return msgspec.convert(document, type_)
    except msgspec.ValidationError:
        return None


def _mend(choice: _Json, key: str) -> None:
    if choice.get(key) is None:
        choice[key] = {}
    message: object = choice[key]
    if not _is_object(message):
        return
    if isinstance(message.get("content"), list):
        _split_content(message)
    if _is_object(message.get("tool_calls")):  # TGI 2: one call, and no list
        message["tool_calls"] = [message["tool_calls"]]
    _drop_others(message, "extra_content", ExtraContent)
    _drop_others(message, "reasoning_details", list[dict[str, Any]])
    for call in _objects(message, "tool_calls"):
        if not isinstance(call.get("index"), int):
            call["index"] = _NO_INDEX
        if not isinstance(call.get("id"), str):  # TGI has a number, which is no id
            call["id"] = ""
        call.pop("type", None)
        _drop_others(call, "extra_content", ExtraContent)
        function = call.get("function")
        if _is_object(function):
            _mend_arguments(function)


def _drop_others(document: _Json, key: str, type_: Any) -> None:
    """Of what is not OpenAI's: servers say different things there."""
    if key in document and _converted(document[key], type_) is None:
        del document[key]


def _mend_arguments(function: _Json) -> None:
    """They are JSON in a string; some servers leave the string out, or all of it."""
    arguments = function.get("arguments")
    if isinstance(arguments, (dict, list)):
        function["arguments"] = msgspec.json.encode(arguments).decode()
    elif arguments is None:
        function["arguments"] = ""


def _split_content(message: _Json) -> None:
    """Mistral's parts: what is thinking becomes reasoning, what is text the content."""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in _objects(message, "content"):
        if part.get("type") == "thinking":
            thoughts.extend(_texts(part.get("thinking")))
        else:
            texts.extend(_texts(part.get("text")))
    message["content"] = "".join(texts)
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in cast("list[object]", value):
            text: object = part.get("text") if _is_object(part) else None
            if isinstance(text, str):
                yield text


def _objects(document: _Json, key: str) -> list[_Json]:
    """The objects of a list; an empty one where there is none."""
    value: object = document.get(key)
    if value is None:
        document.pop(key, None)
    if not isinstance(value, list):
        return []
    return [item for item in cast("list[object]", value) if _is_object(item)]


def _is_object(value: object) -> TypeGuard[_Json]:
    return isinstance(value, dict)
