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
from functools import cache
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Raw, UnsetType

from tollway.wire.chat import ChatRequest, Tool
from tollway.wire.strict_json import VALUES_MAX
from tollway.wire.text import JsonSize, layout_signs

BODY_BYTES_MAX = VALUES_MAX
"""A longer one, its messages apart, may have more values than are allowed."""

BYTES_KEPT_MAX = 8 * 1024 * 1024
"""So that thirty programs may take turns whose tools are 21 KB each."""

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


class ToolsKept:
    """What tools were read as, found by their bytes. When it may take more than `BYTES_KEPT_MAX`,
    all but the last is let go of: so nothing is counted when tools come again."""

    def __init__(self, read: Callable[[bytes], KnownTools | None]) -> None:
        self.find = cache(self._read_and_count)
        self._read = read
        self._bytes = 0

    def _read_and_count(self, written: bytes) -> KnownTools | None:
        known = self._read(written)
        kept_bytes = _kept_bytes_at_most(written)
        self._bytes += kept_bytes
        if self._bytes > BYTES_KEPT_MAX:
            self.find.cache_clear()
            self._bytes = kept_bytes
        return known


def _kept_bytes_at_most(written: bytes) -> int:
    """Its bytes, the same written anew, and its texts, which keep their UTF-8 and where one emoji
    has each letter take four; and an object of Python's for what stands between two signs."""
    return 7 * len(written) + 64 * layout_signs(written)


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
