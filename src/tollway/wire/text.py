"""How long a text can become before a tokenizer cuts it: by itself, or in a model's template.

Some tokenizers normalise to NFKC first, which can make a text longer. Normalising it to see how
long would let a client stop the server: accents are sorted by insertion, so 4 MiB of them take
hours, and 4 MiB of a ligature that stands for 18 letters take 3 s. So unless a look shows that
nothing changes (Python's own, which does not sort) or that nothing grows, each character that grows
is counted with what it becomes by itself.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

_ASCII = bytes(range(0x80))
_ACCENTS = (b"\xcc", b"\xcd")
"""What those of Latin, Greek and Cyrillic begin with in UTF-8. To see whether a text with some is
normalised takes 50 ns a character and not 1.4, for Python normalises it; so it does for a few marks
and vowels of other scripts, which have no bytes of their own to be known by."""

_SAMPLE = 4096

_TOGETHER_BYTES_MAX = 64 * 1024
"""More is looked at text by text, so that nothing large is looked at twice."""

_UNDONE_BYTES_MAX = 9
"""A mark may keep the character before it from being composed again, and none is longer by more
when it is not. Hangul is always composed."""


def text_bytes(text: str) -> int:
    """In UTF-8, as it is or normalised to NFKC: whichever is longer, or a little more where some
    characters become shorter and others longer."""
    if text.isascii():
        return len(text)
    written = text.encode()
    return len(written) + (_growth(text) if _may_grow(written, (text,)) else 0)


def texts_bytes(texts: Sequence[str]) -> int:
    """The sum of `text_bytes` of each. Of little, one look at all together is enough where none
    grows, for parts of a text that is normalised are so too."""
    others = [text for text in texts if not text.isascii()]
    if len(others) == len(texts):
        return _bytes_of(texts)
    size = sum(map(len, texts)) - sum(map(len, others))
    return size + _bytes_of(others) if others else size


def _bytes_of(texts: Sequence[str]) -> int:
    # A text that was written as JSON already keeps its UTF-8.
    written = b"".join([text.encode() for text in texts])
    if len(written) <= _TOGETHER_BYTES_MAX and not _may_grow(written, texts):
        return len(written)
    return sum(map(text_bytes, texts))


class JsonSize(NamedTuple):
    """Of what is written as JSON: its bytes as `text_bytes` has them, and how many of its signs a
    template may write in a longer way: those where it may begin a line, and those it may escape."""

    text_bytes: int
    layout_signs: int
    escaped_signs: int


def json_size(written: bytes) -> JsonSize:
    """Of JSON without spaces."""
    size = len(written) if written.isascii() else text_bytes(written.decode())
    return JsonSize(size, layout_signs(written), escaped_signs(written))


def layout_signs(json: bytes) -> int:
    return len(json) - len(json.translate(None, b",:{}[]"))


def escaped_signs(json: bytes) -> int:
    # `translate`, as above, takes 0.6 ms a MiB; `replace` 0.1, and 13 ns for each that is there.
    return sum(len(json) - len(json.replace(sign, b"")) for sign in (b"<", b">", b"&", b"'"))


def never_grows(written: bytes) -> bool:
    """True: no text that is `written` there in UTF-8 grows. False: perhaps one does. Raises
    `UnicodeDecodeError`."""
    text = written.decode()
    part = _others(written) if _is_mostly_ascii(written, len(text)) else text
    has_accents = any(written.find(accent) >= 0 for accent in _ACCENTS)
    # What does not begin normalised need not be looked at as a whole, which may normalise it.
    begins_normalised = not has_accents and unicodedata.is_normalized("NFKC", part[:_SAMPLE])
    if begins_normalised and unicodedata.is_normalized("NFKC", part):
        return True
    return _growing().find_one(part) is None


def _may_grow(written: bytes, texts: Sequence[str]) -> bool:
    """Whether one of the texts may, which together are `written` so."""
    part = None
    if _is_mostly_ascii(written, sum(map(len, texts))):
        part = _others(written)
    # No any(): it takes 0.5 us more.
    has_accents = written.find(_ACCENTS[0]) >= 0 or written.find(_ACCENTS[1]) >= 0
    if not has_accents:
        if part is not None and unicodedata.is_normalized("NFKC", part):
            return False
        # Marks that ASCII kept apart may have come together: only the whole tells.
        if unicodedata.is_normalized("NFKC", "".join(texts)):
            return False
    # What is Chinese or Japanese has wide commas, which become shorter.
    return _growing().find_one("".join(texts) if part is None else part) is not None


def _is_mostly_ascii(written: bytes, characters: int) -> bool:
    return len(written) < 1.5 * characters


def _others(written: bytes) -> str:
    """What is not ASCII. Nothing of the rest changes, but for a letter before an accent."""
    return written.translate(None, _ASCII).decode()


def _growth(text: str) -> int:
    """By how many bytes, at most."""
    growth, _, find_all = _growing()
    others = text.encode().translate(None, _ASCII).decode()
    composed = decomposed = 0
    for character, count in Counter("".join(find_all(others))).items():
        if_composed, if_decomposed = growth.get(character, (0, 0))
        composed += if_composed * count
        decomposed += if_decomposed * count
    return min(composed, decomposed)


class _Growing(NamedTuple):
    """`growth`: the most bytes that each character can add, composed and decomposed. `find_one`
    finds the first that may add some when composed, in 4 ns a character; `find_all` finds runs of
    those that may add any, and of a few others."""

    growth: dict[str, tuple[int, int]]
    find_one: Callable[[str], re.Match[str] | None]
    find_all: Callable[[str], list[str]]


@cache
def _growing() -> _Growing:
    """Made when it is first needed, in 20 ms."""
    growth: dict[str, tuple[int, int]] = {}
    # No ideographs, no Hangul, no surrogates; and nothing grows that comes after these.
    for first, end in (0x80, 0x3400), (0xA000, 0xAC00), (0xF900, 0x1F300):
        for character in map(chr, range(first, end)):
            decomposed = unicodedata.normalize("NFKD", character)
            composed = unicodedata.normalize("NFKC", character)
            size = len(character.encode())
            if_composed = max(0, len(composed.encode()) - size)
            if unicodedata.combining(decomposed[0]):
                if_composed += _UNDONE_BYTES_MAX
            if_decomposed = max(0, len(decomposed.encode()) - size)
            if if_composed or if_decomposed:
                growth[character] = if_composed, if_decomposed
    growing = "".join(character for character, (more, _) in growth.items() if more)
    return _Growing(
        growth,
        re.compile(_one_of(growing)).search,
        re.compile(_one_of("".join(growth)) + "+").findall,
    )


def _one_of(characters: str) -> str:
    # A set with characters beyond U+FFFF is looked through; it takes ten times as long.
    of_first_plane = "".join(character for character in characters if character <= "\uffff")
    return f"[{of_first_plane}\U00010000-\U0001f2ff]"
