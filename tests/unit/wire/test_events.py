import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.wire.events import EVENT_BYTES_MAX, Delta, DeltaToolCall, EventTooLarge, Frames


def events_of(*reads: bytes) -> list[bytes]:
    events: list[bytes] = []
    frames = Frames(events.append)
    for data in reads:
        frames.feed(data)
    frames.end()
    return events


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data:\n\n", [b""]),
        (b": a comment\n\ndata: a\n\n", [b"a"]),
        (b": a\ndata: b\n: c\ndata: d\n\n", [b"b\nd"]),
        (b"event: x\nid: 7\nretry: 5\ndata: a\n\n", [b"a"]),
        (b"\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"data: a\n", [b"a"]),
        (b"data: a\n\ndata: unfinished", [b"a"]),
        (b"datax: a\n\ndat: b\n\n", []),
        (b"data: a\n\ndata: [DONE]\n\n", [b"a"]),
        (b"data: [DONE]\n\n", []),
        ("data: é\u2028x\n\n".encode(), ["é\u2028x".encode()]),
        (b"", []),
    ],
)
def test_events_are_found_as_the_standard_says(stream: bytes, events: list[bytes]) -> None:
    assert events_of(stream) == events


lines = st.sampled_from(
    [b"data: {}", b"data:x", b"data: \xc3\xa9", b"data: a:b", b": note", b"event: e", b"", b"data"]
)
endings = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def sliced_streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    pairs = draw(st.lists(st.tuples(lines, endings), max_size=12))
    stream = b"".join(line + end for line, end in pairs) + draw(st.sampled_from([b"", b"data: z"]))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    bounds = [0, *cuts, len(stream)]
    return stream, [stream[a:b] for a, b in itertools.pairwise(bounds)]


@given(sliced_streams())
def test_the_events_are_the_same_however_the_bytes_are_cut(
    sliced: tuple[bytes, list[bytes]],
) -> None:
    stream, reads = sliced
    assert events_of(*reads) == events_of(stream)
    assert events_of(*(bytes([byte]) for byte in stream)) == events_of(stream)


def test_an_event_is_handed_on_with_the_read_that_ends_it() -> None:
    events: list[bytes] = []
    frames = Frames(events.append)

    frames.feed(b"data: a\n\ndata: b\n")
    assert events == [b"a"]
    frames.feed(b"\n")
    assert events == [b"a", b"b"]


@pytest.mark.parametrize(
    ("reads", "events"),
    [
        ((b"data: a\n", b"data: b\n\n"), [b"a\nb"]),
        ((b"data: a", b"data: b\n\n"), [b"adata: b"]),
    ],
    ids=["line", "half a line"],
)
def test_a_whole_event_behind_a_part_of_one_belongs_to_it(
    reads: tuple[bytes, ...], events: list[bytes]
) -> None:
    assert events_of(*reads) == events


@pytest.mark.parametrize(
    "read", [b"x" * 65536, b"data: " + b"x" * 65536 + b"\n"], ids=["line", "lines"]
)
def test_an_event_that_does_not_end_is_too_large(read: bytes) -> None:
    frames = Frames(lambda _: None)

    def feed_on() -> None:
        for _ in range(EVENT_BYTES_MAX // 65536 + 2):
            frames.feed(read)

    with pytest.raises(EventTooLarge):
        feed_on()


def test_many_events_are_not_too_large() -> None:
    events: list[int] = []
    frames = Frames(lambda event: events.append(len(event)))
    for _ in range(100):
        frames.feed(b"data: " + b"x" * 65536 + b"\n\ndata: y\n\n")
    assert len(events) == 200


@pytest.mark.parametrize(
    ("delta", "carries"),
    [
        (Delta(content="a"), True),
        (Delta(reasoning="a"), True),
        (Delta(reasoning_content="a"), True),
        (Delta(refusal="a"), True),
        (Delta(tool_calls=[DeltaToolCall(index=0)]), True),
        (Delta(content=""), False),
        (Delta(role="assistant"), False),
        (Delta(content=None, tool_calls=[]), False),
        (Delta(), False),
    ],
)
def test_a_delta_says_whether_it_carries_output(delta: Delta, carries: bool) -> None:
    assert delta.carries_output() is carries


@pytest.mark.parametrize(
    ("delta", "is_reasoning"),
    [
        (Delta(reasoning="a"), True),
        (Delta(reasoning_content="a"), True),
        (Delta(reasoning="a", content="", tool_calls=[], refusal=""), True),
        (Delta(reasoning="a", content="a"), False),
        (Delta(reasoning="a", refusal="a"), False),
        (Delta(reasoning_content="a", tool_calls=[DeltaToolCall(index=0)]), False),
        (Delta(content="a"), False),
        (Delta(), False),
    ],
)
def test_a_delta_says_whether_it_is_reasoning_alone(delta: Delta, is_reasoning: bool) -> None:
    assert delta.is_reasoning() is is_reasoning
