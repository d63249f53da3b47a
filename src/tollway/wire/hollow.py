"""Long requests are read without their long texts.

Nearly all of a conversation of 1 MiB is text that nothing here looks at, and msgspec would read it
byte by byte and write it again so. Instead the long texts are cut out of the body, each for a mark
of a few bytes, and what is left, the shell, is read as any short request. Then the texts are put
back for their marks: as strings in the messages, and in the JSON as they were sent. That takes a
third of the time (docs/decisions/0008).

Why it gives the same request:

- A text begins after a key and a colon, and ends at the first quote that no backslash escapes.
  Where that is not so, the shell is no JSON.
- Each text is checked to be a JSON string by itself, with what it has to say of UTF-8 and escapes.
- Or it is known of a whole conversation: in ASCII without escapes and control characters no string
  is wrong. Its messages are made if somebody asks for them.
- A mark is random, so no request has one of its own. Wherever it turns up, there the text was,
  whatever was left out or came twice; that is found in the shell as in any request.
- No rule asks for what is in these texts, nor how long they are, but by what was put back. If a
  mark turns up elsewhere, in a field that has a rule, the shell is not used.

Whoever gets None here reads the body as it is. `test_hollow.py` holds both ways to one result.
"""

import ctypes
import platform
import re
import secrets
from collections.abc import Callable, Sequence
from typing import cast, overload

import msgspec

from tollway.wire.chat import (
    AssistantMessage,
    ChatRequest,
    ImagePart,
    Message,
    Messages,
    TextPart,
)

LONG_TEXT_BYTES = 1024
"""A shorter one is read faster where it is."""

SHORT_TEXTS_MAX = 256
"""So many more than long ones, and looking for the long ones does not pay."""

_ESCAPED_QUOTES_APART = 256
"""On an average: each is a step of 0.15 us, and more of them would cost what is saved."""

_SAMPLE_BYTES = 64 * 1024
_QUOTES_APART = 64
"""Where they are closer, in a sample, many are escaped, as in code."""

MESSAGES_MAX = 1024

_MARK = f"text {secrets.token_hex(12)} "
_BACKSLASH = ord("\\")


def _pattern(json: bytes) -> re.Pattern[bytes]:
    """`~` is what may stand between two tokens."""
    return re.compile(json.replace(b"~", rb"[ \t\r\n]*"))


_OPENING = rb'\{~"role"~:~"(system|developer|user|assistant)"~,~"content"~:~"'
_match_conversation = _pattern(rb'"messages"~:~(\[)~' + _OPENING).match
_match_next = _pattern(rb'"~\}~(?:,~' + _OPENING + rb"|\])").match
_decode_messages: Callable[[memoryview], list[Message]] = msgspec.json.Decoder(Messages).decode

_find_text = _pattern(rb'"(?:content|text|arguments|url)"~:~"').search
_split_at_marks = re.compile(rb"(" + _MARK.encode() + rb"[0-9]+)").split
_decode_text: Callable[[memoryview], str] = msgspec.json.Decoder(str).decode


class LaterMessages(Sequence[Message]):
    """Sound messages that are not read before somebody looks at one: most upstreams get them as
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


class Hollow:
    """A body without its long texts: `texts` are those by their marks. `text_bytes` is how many
    there are in a conversation that is not read."""

    __slots__ = ("_conversation", "_written", "shell", "text_bytes", "texts")

    def __init__(
        self,
        shell: bytes,
        texts: dict[str, str],
        written: dict[bytes, memoryview],
        conversation: Sequence[Message] | None = None,
        text_bytes: int | None = None,
    ) -> None:
        self.shell = shell
        self.texts = texts
        self._written = written
        self._conversation = conversation
        self.text_bytes = text_bytes

    def fill(self, request: ChatRequest, json: bytes) -> list[bytes | memoryview] | None:
        """Puts the texts back into the request, and into the JSON that it was written as: its
        pieces are returned. None where there are marks elsewhere."""
        pieces: list[bytes | memoryview] = list(_split_at_marks(json))
        messages = request.messages
        if self._conversation is not None:
            if len(pieces) != 3 or [message.content for message in messages] != [_mark(0)[0]]:
                return None
            request.messages = cast("list[Message]", self._conversation)
        elif _put_back(messages, self.texts) != len(pieces) // 2:
            return None
        written = self._written
        pieces[1::2] = [written[mark] for mark in pieces[1::2]]  # type: ignore[index]
        return pieces


def hollow(body: bytes) -> Hollow | None:
    """None where the body has few long texts, or one that may be wrong."""
    view = memoryview(body)
    has_escapes = b"\\" in body
    if has_escapes and _has_many_quotes(body):
        return None
    return _without_conversation(body, view, has_escapes=has_escapes) or (
        _without_texts(body, view, has_escapes=has_escapes)
    )


def _has_many_quotes(body: bytes) -> bool:
    """In its middle: tools may come before the messages or after them."""
    middle = len(body) // 2
    quotes = body.count(b'"', middle, middle + _SAMPLE_BYTES)
    return quotes > min(middle, _SAMPLE_BYTES) // _QUOTES_APART


def _without_conversation(body: bytes, view: memoryview, *, has_escapes: bool) -> Hollow | None:
    """Where messages have a role and a text and nothing else, all of it from within the first text
    to within the last is one that is cut out: 1 us a message is saved."""
    found = _match_conversation(body, max(0, body.find(b'"messages"')))
    if found is None:
        return None
    array_begin, first = found.start(1), found.end()
    begin, count = first, 0
    text_bytes: int | None = 0
    steps_left = len(body) // _ESCAPED_QUOTES_APART
    # What stood between two messages stands there again two messages later, where two roles take
    # turns: comparing takes 75 ns, matching 227.
    before = last = b""
    while True:
        end = body.find(b'"', begin)
        while has_escapes and _is_escaped(body, begin, end):
            end = body.find(b'"', end + 1)
            steps_left -= 1
            if steps_left < 0:
                return None
        if end < 0:
            return None
        count += 1
        text_bytes += end - begin
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
    array = view[array_begin:begin]
    messages: Sequence[Message]
    if not has_escapes and body.isascii() and _has_no_control_characters(body):
        messages = LaterMessages(array, count)
    else:
        text_bytes = None
        try:
            messages = _decode_messages(array)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
    mark = _mark(0)[1]
    shell = b"".join((view[:first], mark, view[end:]))
    return Hollow(shell, {}, {mark: view[first:end]}, messages, text_bytes)


def _without_texts(body: bytes, view: memoryview, *, has_escapes: bool) -> Hollow | None:
    is_clean = not has_escapes and _has_no_control_characters(body)
    shell: list[bytes] = []
    texts: dict[str, str] = {}
    written: dict[bytes, memoryview] = {}
    kept_from = at = 0
    short_left, steps_left = SHORT_TEXTS_MAX, len(body) // _ESCAPED_QUOTES_APART
    while (found := _find_text(body, at)) is not None:
        begin = found.end()
        end = body.find(b'"', begin)
        while has_escapes and _is_escaped(body, begin, end):
            end = body.find(b'"', end + 1)
            steps_left -= 1
            if steps_left < 0:
                return None
        if end < 0:
            return None
        at = end + 1
        if end - begin < LONG_TEXT_BYTES:
            short_left -= 1
            if short_left < 0:
                return None
            continue
        short_left += 1
        try:
            # Python takes 0.1 ms a MiB, and msgspec 0.6.
            text = str(view[begin:end], "utf-8") if is_clean else _decode_text(view[begin - 1 : at])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        mark, mark_written = _mark(len(texts))
        shell += (body[kept_from:begin], mark_written)
        texts[mark] = text
        written[mark_written] = view[begin:end]
        kept_from = end
    if not texts:
        return None
    shell.append(body[kept_from:])
    return Hollow(b"".join(shell), texts, written)


_marks: list[tuple[str, bytes]] = []


def _mark(number: int) -> tuple[str, bytes]:
    """As a string, and in JSON. Making one takes 0.5 us, so they are kept."""
    while number >= len(_marks):
        mark = f"{_MARK}{len(_marks)}"
        _marks.append((mark, mark.encode()))
    return _marks[number]


def _is_escaped(body: bytes, begin: int, quote: int) -> bool:
    """By an odd number of backslashes before it."""
    if quote <= begin or body[quote - 1] != _BACKSLASH:
        return False
    size = 64
    while True:  # a text may be nothing else: a loop over them would take 100 ms a MiB
        before = body[max(begin, quote - size) : quote]
        count = len(before) - len(before.rstrip(b"\\"))
        if count < size:
            return count % 2 == 1
        size *= 16


def _put_back(messages: Sequence[Message], texts: dict[str, str]) -> int:
    """How many."""
    count = 0
    for message in messages:
        content = message.content
        if type(content) is str:
            if (text := texts.get(content)) is not None:
                message.content = text
                count += 1
        elif content is not None:
            count += _put_back_into_parts(content, texts)
        if type(message) is AssistantMessage and message.tool_calls is not None:
            for call in message.tool_calls:
                if (text := texts.get(call.function.arguments)) is not None:
                    call.function.arguments = text
                    count += 1
    return count


def _put_back_into_parts(parts: Sequence[object], texts: dict[str, str]) -> int:
    count = 0
    for part in parts:
        if type(part) is TextPart:
            if (text := texts.get(part.text)) is not None:
                part.text = text
                count += 1
        elif type(part) is ImagePart and (url := texts.get(part.image_url.url)) is not None:
            part.image_url.url = url
            count += 1
    return count


def _finder_of_control_characters() -> Callable[[bytes], bool]:
    """Where C's library has it for 16 characters at once, looking takes 0.27 ms a MiB. Elsewhere it
    goes byte by byte, as msgspec does, which is asked then."""
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
