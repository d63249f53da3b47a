"""What a long request is read as, in the two ways that there are."""

import json
from typing import Any

import msgspec

from tollway.errors import InvalidRequest
from tollway.gateway.prompt import request_bound, text_tokens_bound
from tollway.wire import requests
from tollway.wire.hollow import LONG_TEXT_BYTES
from tollway.wire.requests import ParsedRequest

read_fully = requests._read_fully  # pyright: ignore[reportPrivateUsage]
read_long = requests._read_long  # pyright: ignore[reportPrivateUsage]

LONG = "The Tay Bridge fell in a storm. " * (LONG_TEXT_BYTES // 30)

STEPPED_OVER, AS_USUAL, READ = 1, 256, 1 << 40
WAYS = (STEPPED_OVER, AS_USUAL, READ)
"""To find a conversation with escapes: how far apart have quotes to be, if it is stepped over?"""


def outcome(body: bytes, *, long: bool) -> object:
    """What is read of it, or what is told that is wrong."""
    try:
        parsed = (read_long(body) if long else None) or read_fully(body)
    except InvalidRequest as refused:
        return refused.message, refused.code, refused.param
    return comparable(parsed)


def comparable(parsed: ParsedRequest) -> object:
    sent = json.loads(b"{" + parsed.fields.json + b"}")
    by_name = msgspec.to_builtins(dict(parsed.fields))
    parsed.request.messages = list(parsed.request.messages)
    messages = parsed.request.messages
    tokens = (
        request_bound(parsed).tokens
        if parsed.text_bytes is None
        else text_tokens_bound(len(messages), parsed.text_bytes)
    )
    extras = parsed.fields.extras
    return parsed.request, parsed.unknown, parsed.images, sent, by_name, extras, tokens


class Searched(bytes):
    """A body that counts how often something is looked for in it."""

    times = 0

    def find(self, *looked_for: Any) -> int:
        self.times += 1
        return super().find(*looked_for)
