"""What a text can become, against normalising it."""

import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollway.wire.text import never_grows, text_bytes, texts_bytes

_ALL = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]
CHANGING = [c for c in _ALL if unicodedata.normalize("NFKD", c) != c]
MARKS = [c for c in _ALL if unicodedata.combining(unicodedata.normalize("NFKD", c)[0])]


def longest(text: str) -> int:
    return max(len(form.encode()) for form in (text, unicodedata.normalize("NFKC", text)))


def test_each_character_by_itself_is_as_long_as_it_becomes() -> None:
    wrong = [
        character
        for character in CHANGING + MARKS
        if not 0 <= text_bytes(character) - longest(character) <= 9 * (character in MARKS)
    ]
    assert wrong == []


texts = st.lists(
    st.sampled_from(CHANGING)
    | st.sampled_from(MARKS)
    | st.sampled_from("eéếΐᾧ한ᄒ가각ᅡᆨे়ொ" + "ैাא ﷺ½…\uff0cx ")
    | st.characters(exclude_categories=["Cs"]),
    max_size=8,
).map("".join)


@given(texts)
@example("é\u0323")
@example("ΐ\u0323")
@example("\u1fa7\u0323")
@example("가\u11a8")
@example("각\u0323")
@example("\u1112\u1161\u11ab")
@example("ᄒ½ᅡ")
def test_no_text_becomes_longer_than_is_told(text: str) -> None:
    assert text_bytes(text) >= longest(text)


@given(st.lists(texts | st.sampled_from(["plain", "é", "e", "\u0301", "\u0323"]), max_size=4))
def test_several_are_as_long_as_each_by_itself(several: list[str]) -> None:
    written = "".join(several).encode()
    assert texts_bytes(several) == sum(map(text_bytes, several))
    assert not never_grows(written) or len(written) == sum(map(text_bytes, several))


def test_marks_that_ascii_keeps_apart_count_beside_others_as_by_themselves() -> None:
    for apart in "a" * 60 + " é é é x\u05b4 x\u05b0", "é x\u05b4x\u05b0xx":
        beside = "漢字" * 40
        assert texts_bytes([apart, beside]) == text_bytes(apart) + text_bytes(beside)


@pytest.mark.parametrize("text", ["か\u3099", "\u0627\u0653", "\u0bc6\u0bbe", "\u0435\u0301"])
def test_what_does_not_begin_normalised_is_not_normalised_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    looked: list[int] = []

    def not_normalised(_: str, text: str) -> bool:
        looked.append(len(text))
        return False

    monkeypatch.setattr(unicodedata, "is_normalized", not_normalised)
    never_grows((text * 9999).encode())
    assert looked in ([4096], [])  # none of what has accents


@pytest.mark.parametrize(
    "text", ["Brücke", "大桥\uff0c\uff01", "“Don\u2019t”…", "ガラス", "한국어"]
)
def test_most_texts_are_known_not_to_grow(text: str) -> None:
    assert never_grows(text.encode())
    assert never_grows(b"x" * 99 + text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "Été… «\u00a0Où\u00a0?\u00a0»",
        "½ cup, 3 ㎏, 25 ™",
        "这是一个测试\uff0c我们看看\uff1a“很好”\uff01",
        "ガラスのコップ、か\uff9eらす",
        "한국어 문장…",
        "Съешь ещё этих булок… №\u00a05",
        "Tiếng Việt… ",
        unicodedata.normalize("NFD", "Tiếng Việt, été, Ångström"),
        "กำลังทำอะไร",
        "हिन्दी में क़लम",
        "ﷺ صلى الله عليه وسلم",
        "שָׁלוֹם",
        "👩\u200d🚀 🇩🇪 ❤\ufe0f",
    ],
)
def test_what_people_write_is_counted_nearly_to_the_byte(text: str) -> None:
    assert longest(text) <= text_bytes(text) <= longest(text) * 1.2


@pytest.mark.parametrize(
    "text",
    [
        "a" + "\u0301\u0323" * 500,
        "a" + "\u0301" * 500 + "\u0323" * 500,
        "a" + "\u0301" * 500,
        "\ufdfa" * 500,
        "\u0344" * 500,
    ],
)
def test_what_would_take_long_to_normalise_is_not(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    text_bytes("½")  # what each character becomes is known from here on
    with monkeypatch.context() as patched:
        patched.setattr(unicodedata, "normalize", _refuse)
        if unicodedata.combining(text[-1]):  # a glance at these normalises
            patched.setattr(unicodedata, "is_normalized", _refuse)
        found = text_bytes(text)

    assert found >= len(text.encode())


def _refuse(form: str, text: str) -> str:
    raise AssertionError(f"{text!r} is normalised to {form}")
