"""A long request with tools, as agents send it: its messages are read by their types at once, and
what is left of it, the shell, as any short request.

The full way makes Python's objects of all, writes them again to see whether a key came twice, makes
our types of them and writes those: five passes, of which none is for the upstream but the last.
Here it is two: messages have no field of any type, so nothing in them has to be counted or measured
before it is read. That takes half of the time (docs/decisions/0008).

Why nothing is overlooked: what was read is written anew without spaces, and never longer than it
came, since no message has a number, nor a type that we would add. So where both have the same
length, nothing was left out: no key that came twice, no field that is not ours, no space. An
assistant's message that an SDK sends back has fields that are null, and some that are not ours.
What is missing may be of such messages, and these are then read the full way, too.

Whoever gets None here reads the body the full way. `test_agents.py` holds both to one result.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from tollway.wire.chat import AssistantMessage, ChatRequest, Message, Messages, UserMessage
from tollway.wire.strict_json import DEPTH_MAX, VALUES_MAX, values_of_part

SHELL_MESSAGES = b'[{"role":"user","content":"..."}]'
"""Stands for the messages in the shell."""

_SHELL_MESSAGES = Raw(SHELL_MESSAGES)
_OTHERS = [name for name in ChatRequest.__struct_fields__ if name != "messages"]


class _WithMessages(Struct):
    messages: Messages


class _MessagesAsTheyCame(Struct):
    messages: list[Raw]


_Outline = cast(
    "type[_WithMessages]",
    msgspec.defstruct(
        "_Outline", [(name, Raw | UnsetType, UNSET) for name in _OTHERS], bases=(_WithMessages,)
    ),
)
_decode_outline = msgspec.json.Decoder(_Outline).decode
_decode_as_they_came = msgspec.json.Decoder(_MessagesAsTheyCame).decode
_encode: Callable[[object], bytes] = msgspec.json.Encoder().encode

_BYTES_PER_VALUE_MIN = 8
"""Of messages: `{"type":"text","text":""},` has three values."""
_VALUES_PER_OBJECT_MAX = 7
"""Of messages: what it has, and itself in its list."""


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
    messages = outline.messages
    if not are_never_longer(messages):
        return None
    outline.messages = cast("list[Message]", _SHELL_MESSAGES)
    shell = _encode(outline)
    if len(shell) > len(body) // 2:  # nearly all are tools: no pass is saved
        return None
    written = _encode(messages)
    other_values = len(shell) * 2 // 3  # of empty lists: `[],` has two
    left_out = len(body) - (len(shell) - len(SHELL_MESSAGES) + len(written))
    if left_out:
        found = _values_of_assistants(body, messages, left_out)
        if found is None:
            return None
        other_values += found
    if not _has_values_at_most(written, VALUES_MAX - other_values):
        return None
    return MessagesApart(shell, messages, written)


def are_never_longer(messages: Sequence[Message]) -> bool:
    """When they are written anew. Where a type's tag is the only one possible, msgspec takes an
    object without it and writes it. An empty list of calls is not sent."""
    for message in messages:
        if type(message) is AssistantMessage:
            calls = message.tool_calls
            if calls is None:
                continue
            if not calls:
                return False
            for call in calls:  # no all(): a generator for each message takes twice as long
                if call.type is UNSET:
                    return False
        elif type(message) is not UserMessage and type(message.content) is not str:
            return False
    return True


def _values_of_assistants(body: bytes, messages: Sequence[Message], left_out: int) -> int | None:
    """How many values the assistant's messages have, at most. None where not all that was
    `left_out` is of these, or one may be wrong."""
    try:
        as_they_came = _decode_as_they_came(body).messages
    except RecursionError:  # Python counts this function, too, and one level may be too much
        return None
    of_assistants = [
        (message, raw)
        for message, raw in zip(messages, as_they_came, strict=True)
        if type(message) is AssistantMessage
    ]
    came = b"[%b]" % b",".join([raw for _, raw in of_assistants])
    if len(came) - len(_encode([message for message, _ in of_assistants])) != left_out:
        return None
    return values_of_part(came, DEPTH_MAX - 1)


def _has_values_at_most(written: bytes, values: int) -> bool:
    if len(written) <= values * _BYTES_PER_VALUE_MIN:
        return True
    objects_max = len(written) - len(written.replace(b"{", b""))
    return objects_max * _VALUES_PER_OBJECT_MAX <= values
