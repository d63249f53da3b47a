"""Long requests are read without their long texts.

Nearly all of a conversation of 1 MiB is text that nothing here looks at, and msgspec would read it
byte by byte and write it again so. Instead the long texts are cut out of the body, each for a mark
of a few bytes, and what is left, the shell, is read as any short request. Then the texts are put
back for their marks: as strings in the messages, and in the JSON as they were sent. That takes a
third of the time (docs/decisions/0008).

Why it gives the same request:

- A text begins after a key and a colon, and ends at the first quote that no backslash escapes.
  Where that is not so, the shell is no JSON.
- Each text is read as a JSON string by itself, for what is to say of its UTF-8 and escapes.
- Or all of a conversation is known to be sound (`conversation.py`).
- A mark is random, so no request has one of its own. Wherever it turns up, there the text was,
  whatever was left out or came twice; that is found in the shell as in any request.
- No rule asks for what is in these texts, nor how long they are, but by what was put back. If a
  mark turns up elsewhere, in a field that has a rule, the shell is not used.

Whoever gets None here reads the body as it is. `test_hollow.py` holds both ways to one result.
"""

import re
import secrets
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from tollway.wire.chat import AssistantMessage, ChatRequest, ImagePart, Message, TextPart
from tollway.wire.conversation import Conversation, find_conversation, pattern
from tollway.wire.quotes import QUOTES_APART, are_close, is_escaped

LONG_TEXT_BYTES = 1024
"""A shorter one is read faster where it is."""

SHORT_TEXTS_MAX = 256
"""So many more than long ones, and looking for the long ones does not pay."""

_CLOSE_BYTES = 64
"""Where quotes are closer than this many of them are escaped, as in code."""

_MARK = f"text {secrets.token_hex(12)} "

_find_text = pattern(rb'"(?:content|text|arguments|url)"~:~"').search
_split_at_marks = re.compile(rb"(" + _MARK.encode() + rb"[0-9]+)").split
_decode_text: Callable[[memoryview], str] = msgspec.json.Decoder(str).decode


class Hollow:
    """A body without its long texts: `texts` are those by their marks, or one is all of a
    `conversation`."""

    __slots__ = ("_written", "conversation", "shell", "texts")

    def __init__(
        self,
        shell: bytes,
        texts: dict[str, str],
        written: dict[bytes, memoryview],
        conversation: Conversation | None = None,
    ) -> None:
        self.shell = shell
        self.texts = texts
        self._written = written
        self.conversation = conversation

    def fill(self, request: ChatRequest, json: bytes) -> list[bytes | memoryview] | None:
        """Puts the texts back into the request, and into the JSON that it was written as: its
        pieces are returned. None where there are marks elsewhere."""
        pieces: list[bytes | memoryview] = list(_split_at_marks(json))
        messages = request.messages
        if self.conversation is not None:
            if len(pieces) != 3 or [message.content for message in messages] != [_mark(0)[0]]:
                return None
            request.messages = cast("list[Message]", self.conversation.messages)
        elif _put_back(messages, self.texts) != len(pieces) // 2:
            return None
        written = self._written
        pieces[1::2] = [written[mark] for mark in pieces[1::2]]  # type: ignore[index]
        return pieces


def hollow(body: bytes) -> Hollow | None:
    """None where the body has few long texts, or one that may be wrong."""
    has_escapes = body.find(b"\\") >= 0
    conversation = find_conversation(body, has_escapes=has_escapes)
    if conversation is not None:
        return _without_conversation(body, conversation)
    if has_escapes and are_close(body, b'"', _CLOSE_BYTES):
        return None
    return _without_texts(body, has_escapes=has_escapes)


def _without_conversation(body: bytes, found: Conversation) -> Hollow:
    """All of it from within the first text to within the last is cut out as one text: 1 us a
    message is saved."""
    view = memoryview(body)
    mark = _mark(0)[1]
    shell = b"".join((view[: found.begin], mark, view[found.end :]))
    return Hollow(shell, {}, {mark: view[found.begin : found.end]}, found)


def _without_texts(body: bytes, *, has_escapes: bool) -> Hollow | None:
    view = memoryview(body)
    shell: list[bytes] = []
    texts: dict[str, str] = {}
    written: dict[bytes, memoryview] = {}
    kept_from = at = 0
    short_left, steps_left = SHORT_TEXTS_MAX, len(body) // QUOTES_APART
    while (found := _find_text(body, at)) is not None:
        begin = found.end()
        end = body.find(b'"', begin)
        while has_escapes and is_escaped(body, begin, end):
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
            text = _decode_text(view[begin - 1 : at])
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
        if type(message) is AssistantMessage:
            for call in message.tool_calls or ():
                if (text := texts.get(call.function.arguments)) is not None:
                    call.function.arguments = text
                    count += 1
            for detail in message.reasoning_details or ():
                mark = detail.get("text")
                if type(mark) is str and (text := texts.get(mark)) is not None:
                    detail["text"] = text
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
