"""A long request with tools, as agents send it: its messages are read by their types at once, and
what is left of it, the shell, as any short request.

The full way makes Python's objects of all, writes them again to see whether a key came twice, makes
our types of them and writes those: five passes, of which none is for the upstream but the last.
Here it is two: messages have no field of any type, so nothing in them has to be counted or measured
before it is read. That takes half of the time (docs/decisions/0008).

Why nothing is overlooked: what was read is written anew without spaces, and never longer than it
came, since no message has a number, nor a type that we would add. So where both have the same
length, nothing was left out: no key that came twice, no field that is not ours, no space. An
assistant's message that an SDK sends back has fields that are null, and some that are not ours: it
is read by a type that has them, and written with them for that comparison.

Whoever gets None here reads the body the full way. `test_agents.py` holds both to one result.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType
from msgspec.structs import astuple, fields

from tollway.wire.chat import (
    MESSAGES_MAX,
    AssistantMessage,
    ChatRequest,
    DeveloperMessage,
    Message,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from tollway.wire.strict_json import VALUES_MAX

SHELL_MESSAGES = b'[{"role":"user","content":"..."}]'
"""Stands for the messages in the shell."""

_Nothing = Annotated[list[None], Meta(max_length=0)] | None
_FIELDS: tuple[tuple[str, Any], ...] = tuple(
    # What may be anything may have numbers, and nothing bounds how long reading it takes.
    (field.name, None if field.name == "reasoning_details" else field.type)
    for field in fields(AssistantMessage)
)
_FIELDS_LEFT_OUT: tuple[tuple[str, Any], ...] = (
    ("reasoning", str | None),
    ("annotations", _Nothing),
    ("audio", None),
    ("function_call", None),
)
"""What a reply had that is no field of a request. Other values of them are read the full way."""

_AssistantAsSent = msgspec.defstruct(
    "_AssistantAsSent",
    [(name, type_ | UnsetType, UNSET) for name, type_ in (*_FIELDS, *_FIELDS_LEFT_OUT)],
    tag_field="role",
    tag="assistant",
)
_NONE_LEFT_OUT = (UNSET,) * len(_FIELDS_LEFT_OUT)
_Sent = Annotated[
    list[SystemMessage | DeveloperMessage | UserMessage | _AssistantAsSent | ToolMessage],
    Meta(min_length=1, max_length=MESSAGES_MAX),
]
_Outline = msgspec.defstruct(
    "_Outline",
    [
        ("messages", _Sent),
        *((n, Raw | UnsetType, UNSET) for n in ChatRequest.__struct_fields__ if n != "messages"),
    ],
)
_decode_outline: Callable[[bytes], Any] = msgspec.json.Decoder(_Outline).decode
_encode: Callable[[object], bytes] = msgspec.json.Encoder().encode
_encode_lines: Callable[[Sequence[object]], bytes] = msgspec.json.Encoder().encode_lines

_BYTES_PER_VALUE_MIN = 8
"""Of messages: `{"type":"text","text":""},` has three values."""
_VALUES_PER_OBJECT_MAX = 2 + len(_AssistantAsSent.__struct_fields__)
"""Of messages: what it has, its role, and itself in its list."""


class MessagesApart(NamedTuple):
    """`written` is the messages as JSON, for the upstream."""

    shell: bytes
    messages: list[Message]
    written: bytes


def read_messages_apart(body: bytes) -> MessagesApart | None:
    """None where the body is no such request, or may be wrong."""
    if body.find(b'": ', 0, 64) >= 0:  # written with spaces
        return None
    try:
        outline = _decode_outline(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    sent = outline.messages
    messages, changed = _of_ours(sent)
    if not are_never_longer(messages):
        return None
    outline.messages = Raw(SHELL_MESSAGES)
    shell = _encode(outline)
    if len(shell) > len(body) // 2:  # nearly all are tools: no pass is saved
        return None
    sent_bytes, written = _write(sent, messages, changed)
    if len(shell) - len(SHELL_MESSAGES) + sent_bytes != len(body):
        return None
    other_values = len(shell) * 2 // 3  # of empty lists: `[],` has two
    if not _has_values_at_most(written, sent_bytes, VALUES_MAX - other_values):
        return None
    return MessagesApart(shell, messages, written)


def are_never_longer(messages: Sequence[Message]) -> bool:
    """When they are written anew. Where a type's tag is the only one possible, msgspec takes an
    object without it and writes it. An empty list of calls is not sent, and a content that is
    missing may be. Details of reasoning may have numbers."""
    for message in messages:
        if type(message) is AssistantMessage:
            if message.reasoning_details is not None:
                return False
            calls = message.tool_calls
            if calls is None:
                if message.content is None:
                    return False
                continue
            if not calls:
                return False
            for call in calls:  # no all(): a generator for each message takes twice as long
                if call.type is UNSET:
                    return False
        elif type(message) is not UserMessage and type(message.content) is not str:
            return False
    return True


def _of_ours(sent: Sequence[Any]) -> tuple[list[Message], list[int]]:
    """As messages of ours, and which of them lost something by that."""
    messages: list[Message] = []
    changed: list[int] = []
    for message in sent:
        if type(message) is _AssistantAsSent:
            values = astuple(message)
            own = values[: len(_FIELDS)]
            if None in own or values[len(_FIELDS) :] != _NONE_LEFT_OUT:
                changed.append(len(messages))
            message = AssistantMessage(*[None if value is UNSET else value for value in own])
        messages.append(message)
    return messages, changed


def _write(
    sent: Sequence[object], messages: Sequence[Message], changed: Sequence[int]
) -> tuple[int, bytes]:
    """How long they are as they were sent, and what the upstream gets: most of both is the same."""
    if not changed:
        written = _encode(messages)
        return len(written), written
    written = _encode_lines(sent)
    lines = written.split(b"\n")  # in a text it is an escape
    for index in changed:
        lines[index] = _encode(messages[index])
    return len(written) + 1, b"[%b]" % b",".join(lines[:-1])


def _has_values_at_most(written: bytes, sent_bytes: int, values: int) -> bool:
    if sent_bytes <= values * _BYTES_PER_VALUE_MIN:
        return True
    objects_max = len(written) - len(written.replace(b"{", b""))
    return objects_max * _VALUES_PER_OBJECT_MAX <= values
