"""Tools that a program sends again are not read again.

What lets a model call functions comes with each request of a program, byte for byte the same: 21 KB
for twenty functions. Reading them is most of a short request's time and a sixth of a long one's
(docs/decisions/0008). So they are cut out of the body, and what they were read as is kept by their
bytes (`requests.py`); what is left, the shell, is read as any request.

Why it gives the same request:

- The same bytes are the same tools, whoever sends them: nothing else is asked to read them.
- A body that is as long as what was found in it has nothing else: no field that is not ours, none
  that came twice, no space.
- No rule asks what the tools are but that of a choice by name, and with such nothing is cut out.

Whoever gets None here reads the body as it is. `test_tools.py` holds both ways to one result.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Raw, UnsetType

from tollway.wire.chat import ChatRequest, Tool
from tollway.wire.strict_json import VALUES_MAX
from tollway.wire.text import JsonSize

BODY_BYTES_MAX = VALUES_MAX
"""A longer one, its messages apart, may have more values than are allowed."""

_CHOICES = {f'"{choice}"'.encode(): choice for choice in ("auto", "none", "required")}

_Outline = msgspec.defstruct(
    "_Outline", [(name, Raw | UnsetType, UNSET) for name in ChatRequest.__struct_fields__]
)
_decode_outline: Callable[[bytes], Any] = msgspec.json.Decoder(_Outline).decode
_encode = msgspec.json.Encoder().encode


class KnownTools(NamedTuple):
    """`written` is the tools as JSON, for the upstream."""

    tools: list[Tool]
    written: bytes
    size: JsonSize


class ToolsApart(NamedTuple):
    """`written` is the JSON of the tools as it came, `choice` the request's `tool_choice`."""

    shell: bytes
    written: bytes
    choice: str | None


def cut_out_tools(body: bytes) -> ToolsApart | None:
    """None where the body has none, is long, or may be wrong."""
    if len(body) > BODY_BYTES_MAX or body.find(b'"tools":[') < 0:
        return None
    try:
        outline = _decode_outline(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    tools, choice = outline.tools, outline.tool_choice
    if tools is UNSET:
        return None
    outline.tools = outline.tool_choice = UNSET
    cut_bytes = len(',"tools":') + len(tools)
    if choice is not UNSET:
        choice = bytes(choice)
        if choice not in _CHOICES:
            return None
        cut_bytes += len(',"tool_choice":') + len(choice)
    shell = _encode(outline)
    if len(shell) + cut_bytes != len(body):
        return None
    return ToolsApart(shell, bytes(tools), None if choice is UNSET else _CHOICES[choice])
