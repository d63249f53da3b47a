"""A long conversation, told without making its messages: an array of those that have a role and a
text and nothing else, as most long requests have.

Where quotes are rare, one text after the other is stepped over: a string of JSON ends at the first
quote that no backslash escapes. Without escapes and control characters no such string is wrong if
it is UTF-8; others are read. Where quotes are close, as in code, the array is taken to end at the
last bracket that can be its own, and read: then it is known what it is.

Either library reads one kind of text faster. Microseconds a MiB:

| | prose | a newline in each sentence | code | accents | as escapes | Chinese |
|---|--:|--:|--:|--:|--:|--:|
| jiter | 130 | 240 | 770 | 1,600 | 2,000 | 1,900 |
| msgspec | 440 | 500 | 740 | 1,000 | 1,200 | 1,300 |

So what is not ASCII is looked at twice: as UTF-8, by Python's decoder, and as JSON, by jiter with
letters in its place.

jiter has no types and no limit: what takes it long is counted before, what it read is looked at.
"""

import ctypes
import platform
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, overload

import msgspec
from jiter import from_json

from tollway.wire.chat import Message, Messages
from tollway.wire.quotes import QUOTES_APART, are_close, is_escaped
from tollway.wire.strict_json import VALUES_MAX, Json
from tollway.wire.text import never_grows, texts_bytes

MESSAGES_MAX = 1024

_ROLES = ("system", "developer", "user", "assistant")

_BACKSLASHES_APART = 32
"""Where they are closer, jiter is not faster: letters are written as escapes, for example."""

_AS_ASCII = bytes(range(0x80)) + b"x" * 0x80

_BRACKETS_MAX = 16
"""Of those that come after the messages: `stop` may have one, tools have more."""


def pattern(json: bytes) -> re.Pattern[bytes]:
    """`~` is what may stand between two tokens."""
    return re.compile(json.replace(b"~", rb"[ \t\r\n]*"))


_OPENING = rb'\{~"role"~:~"(?:%s)"~,~"content"~:~"' % "|".join(_ROLES).encode()
_match_first = pattern(rb'"messages"~:~(\[)~' + _OPENING).match
_match_next = pattern(rb'"~\}~(?:(,)~' + _OPENING + rb"|\])").match
_match_last = pattern(rb'"~\}~\]').match

_decode_messages: Callable[[memoryview], list[Message]] = msgspec.json.Decoder(Messages).decode
# Without a cache: it would keep what clients sent, and is no faster.
_read_few_escapes = partial(from_json, cache_mode="none")
_read_others = msgspec.json.Decoder(list[dict[str, str]]).decode
_read_any = partial(from_json, cache_mode="none", catch_duplicate_keys=True)


class LaterMessages(Sequence[Message]):
    """Sound messages that are not made before somebody looks at one: most upstreams get them as
    they came."""

    __slots__ = ("_array", "_count", "_read")

    def __init__(self, array: memoryview, count: int) -> None:
        self._array = array
        self._count = count
        self._read: list[Message] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Message: ...
    @overload
    def __getitem__(self, at: slice) -> list[Message]: ...
    def __getitem__(self, at: int | slice) -> Message | list[Message]:
        if self._read is None:
            self._read = _decode_messages(self._array)
        return self._read[at]


class Conversation(NamedTuple):
    """`begin` is where its first text begins in the body, and `end` where its last one ends."""

    begin: int
    end: int
    messages: LaterMessages
    text_bytes: int


def find_conversation(body: bytes, *, has_escapes: bool) -> Conversation | None:
    """None where the messages are others, too many, or may be wrong."""
    opening = _match_first(body, max(0, body.find(b'"messages"')))
    if opening is None:
        return None
    array, first = opening.start(1), opening.end()
    if has_escapes and are_close(body, b'"', QUOTES_APART):
        return _read_to_its_end(body, array, first)
    return _step_over(body, array, first, has_escapes=has_escapes)


def _step_over(body: bytes, array: int, first: int, *, has_escapes: bool) -> Conversation | None:
    begin, count, size = first, 0, 0
    steps_left = len(body) // QUOTES_APART
    # What stood between two messages stands there again two messages later, where two roles take
    # turns: comparing takes 75 ns, matching 227.
    before = last = b""
    while True:
        end = body.find(b'"', begin)
        while has_escapes and is_escaped(body, begin, end):
            end = body.find(b'"', end + 1)
            steps_left -= 1
            if steps_left < 0:
                return _read_to_its_end(body, array, first)
        if end < 0:
            return None
        count += 1
        size += end - begin
        before, last = last, before
        if last and body.startswith(last, end):
            begin = end + len(last)
        else:
            following = _match_next(body, end)
            if following is None:
                return None
            begin = following.end()
            if following[1] is None:
                break
            last = body[end:begin]
        if count == MESSAGES_MAX:
            return None
    is_bare = not has_escapes and _has_no_control_characters(body)
    if not (is_bare and body.isascii()):
        written = body[array:begin]
        try:
            if not is_bare:
                size = _size_of_texts(written)
            elif not never_grows(written):
                size = _sum_of_texts(_read_others(written))
        except ValueError:  # msgspec's is one too
            return None
    return Conversation(first, end, LaterMessages(memoryview(body)[array:begin], count), size)


def _read_to_its_end(body: bytes, array: int, first: int) -> Conversation | None:
    closing = _find_closing(body, first)
    if closing is None:
        return None
    if not _can_be_read(body[first : closing.start()]):
        return None
    written = body[array : closing.end()]
    try:
        read = _read_any(_in_ascii(written))
        if len(read) > MESSAGES_MAX or not all(map(_is_plain, read)):
            return None
        size = _size_of_read(read, written)
    except ValueError:
        return None
    messages = LaterMessages(memoryview(body)[array : closing.end()], len(read))
    return Conversation(first, closing.start(), messages, size)


def _size_of_texts(written: bytes) -> int:
    """`text_bytes` of all in an array that is known to be messages. Raises `ValueError` where one
    is no string."""
    if are_close(written, b"\\", _BACKSLASHES_APART):
        return _sum_of_texts(_read_others(written))
    return _size_of_read(_read_few_escapes(_in_ascii(written)), written)


def _in_ascii(written: bytes) -> bytes:
    """With a letter for each byte of what is not ASCII. Quotes and escapes stay what they are, and
    no other name becomes one of ours, for none of those has this letter."""
    return written if written.isascii() else written.translate(_AS_ASCII)


def _size_of_read(messages: list[dict[str, str]], written: bytes) -> int:
    """`text_bytes` of messages that were read `_in_ascii`. Raises `UnicodeDecodeError`."""
    contents = [message["content"] for message in messages]
    if written.isascii():
        return texts_bytes(contents)
    # These are as long as the texts in UTF-8, but for what escapes stand for.
    if all(map(str.isascii, contents)) and never_grows(written):
        return sum(map(len, contents))
    return _sum_of_texts(_read_others(written))


def _sum_of_texts(messages: list[dict[str, str]]) -> int:
    return texts_bytes([message["content"] for message in messages])


def _find_closing(body: bytes, first: int) -> re.Match[bytes] | None:
    """Of the messages, by their last quote; other arrays may come after them."""
    end = len(body)
    for _ in range(_BRACKETS_MAX):
        end = body.rfind(b'"', first, max(first, body.rfind(b"]", first, end)))
        if end < 0:
            return None
        closing = _match_last(body, end)
        if closing is not None and not is_escaped(body, first, end):
            return closing
    return None


def _can_be_read(inside: bytes) -> bool:
    """In 0.1 s for 4 MiB, whatever it is: lists, objects and keys would take 0.3.

    `count` goes byte by byte, 0.35 ms a MiB. `replace` looks at 32 and more at once: 0.01 ms where
    there is none; 0.05, for it copies, and 13 ns for each where there are."""
    return all(
        len(inside) - len(inside.replace(sign, b"", VALUES_MAX + 1)) <= VALUES_MAX
        for sign in (b"[", b"{", b":")
    )


def _is_plain(message: Json) -> bool:
    """Whether a message has a role and a text and nothing else."""
    return (
        type(message) is dict
        and len(message) == 2
        and message.get("role") in _ROLES
        and type(message.get("content")) is str
    )


def _finder_of_control_characters() -> Callable[[bytes], bool]:
    """Where C's library has it for 16 characters at once, looking takes 0.1 ms a MiB. Elsewhere the
    messages are read."""
    if platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64":
        return lambda body: False
    span = ctypes.PyDLL(None).strcspn
    span.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    span.restype = ctypes.c_size_t
    some, others = bytes(range(0x01, 0x11)), bytes(range(0x11, 0x20))

    def has_none(body: bytes) -> bool:
        # The first NUL ends a string of C's, so that is found too.
        return span(body, some) == span(body, others) == len(body)

    return has_none


_has_no_control_characters = _finder_of_control_characters()
