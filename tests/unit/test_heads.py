"""A head that was learned saves the parser, and must never say anything else than the parser."""

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from tollway.heads import LearnedHead

LINES = (
    b"POST /v1/chat/completions HTTP/1.1",
    b"Host: tollway.example",
    b"Authorization: Bearer tw_x",
    b"Content-Type: application/json",
)


def a_request(
    body: bytes, *, length_line: bytes = b"Content-Length: %d", last: bool = True
) -> bytes:
    length = length_line % len(body)
    lines = [*LINES, length] if last else [LINES[0], length, *LINES[1:]]
    return b"\r\n".join([*lines, b"", b""]) + body


def learned(request: bytes, body: bytes) -> LearnedHead:
    head = LearnedHead.of(request, len(body))
    assert head is not None
    return head


class Parsed:
    """What httptools makes of some bytes: each message's head, and all bodies."""

    def __init__(self, data: bytes) -> None:
        self.heads: list[list[tuple[bytes, bytes]]] = []
        self.url = b""
        self.body = b""
        self.complete = 0
        httptools.HttpRequestParser(self).feed_data(data)

    def on_message_begin(self) -> None:
        self.heads.append([])

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.heads[-1].append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


def test_the_next_request_may_have_a_body_of_another_length() -> None:
    head = learned(a_request(b'{"a":1}'), b'{"a":1}')

    assert head.body_in(a_request(b'{"b":"longer than before"}')) == b'{"b":"longer than before"}'
    assert head.body_in(a_request(b"x" * 100_000)) == b"x" * 100_000


def test_the_length_may_stand_anywhere_in_the_head() -> None:
    head = learned(a_request(b"{}", last=False), b"{}")

    assert head.body_in(a_request(b'{"a":1}', last=False)) == b'{"a":1}'


def test_what_is_not_one_whole_request_with_that_head_is_the_parsers() -> None:
    request = a_request(b'{"a":1}')
    head = learned(request, b'{"a":1}')

    assert head.body_in(request[:-1]) is None
    assert head.body_in(request + request) is None
    assert head.body_in(request.replace(b"tw_x", b"tw_y")) is None
    assert head.body_in(request.replace(b": 7", b": +7")) is None
    assert head.body_in(request.replace(b": 7", b": 7\r\nContent-Length: 7")) is None
    assert head.body_in(request.replace(b": 7", b": ")) is None
    assert head.body_in(b"") is None


def test_the_beginning_of_a_long_request_says_how_much_is_missing() -> None:
    head = learned(a_request(b"{}"), b"{}")
    long = a_request(b"x" * 100_000)

    found = head.long_body_in(long[:-30_000])
    assert found is not None
    assert (bytes(found[0]), found[1]) == (b"x" * 70_000, 30_000)
    assert head.long_body_in(long) is None
    assert head.long_body_in(long + long) is None
    assert head.long_body_in(long.replace(b"tw_x", b"tw_y")[:-1]) is None
    assert head.long_body_in(long.replace(b": 1", b": +1")[:-1]) is None
    assert head.long_body_in(long.replace(b": 100000", b": ")[:-1]) is None
    assert head.long_body_in(long.replace(b": 1", b": " + b"0" * 30 + b"1")[:-1]) is None
    assert head.long_body_in(long[:50]) is None


def test_only_one_message_alone_is_learned_from_with_its_whole_head() -> None:
    request = a_request(b"{}")

    assert LearnedHead.of(request + b"GET /", 2) is None
    assert LearnedHead.of(request[:-3], 2) is None
    assert LearnedHead.of(request[:-2], 0) is None
    assert LearnedHead.of(request.replace(b"Content-Length: 2", b"X: 2"), 2) is None


def test_nothing_is_learned_from_a_read_that_begins_with_another_message() -> None:
    """What is known of the last message must not be taken for the first one's."""
    for first in (a_request(b"{}"), a_request(b"{}" * 50), a_request(b"x" * 99_000)):
        for length in (2, 100, 99_000, 100_000):
            last = a_request(b"y" * length)
            for missing in (0, 1, length - 1, length):
                assert LearnedHead.of(first + last[: len(last) - missing], length) is None


INSERTED = st.sampled_from(
    [b"", b" ", b"0", b"9", b"\r\n", b"\n", b"\r", b"\t", b"Content-Length: 3\r\n", b"\x00"]
)
LENGTH_LINES = st.sampled_from(
    [b"Content-Length: %d", b"content-length:%d", b"CONTENT-LENGTH:  %d ", b"Content-length: 0%d"]
)


@settings(max_examples=400)
@given(
    body=st.binary(min_size=1, max_size=40),
    at=st.integers(0, 200),
    cut=st.integers(0, 3),
    inserted=INSERTED,
    length_line=LENGTH_LINES,
    last=st.booleans(),
)
def test_whatever_it_accepts_the_parser_reads_alike(
    body: bytes, at: int, cut: int, inserted: bytes, length_line: bytes, last: bool
) -> None:
    first = a_request(b"{}", length_line=length_line, last=last)
    head = learned(first, b"{}")
    second = a_request(body, length_line=length_line, last=last)
    mutated = second[:at] + inserted + second[at + cut :]

    found = head.body_in(mutated)

    if found is not None:
        parsed, before = Parsed(mutated), Parsed(first)
        assert (parsed.complete, parsed.body, parsed.url) == (1, found, before.url)
        assert without_length(parsed) == without_length(before)


@settings(max_examples=400)
@given(
    length=st.integers(1, 3000),
    there=st.integers(0, 60),
    at=st.integers(0, 200),
    cut=st.integers(0, 3),
    inserted=INSERTED,
    length_line=LENGTH_LINES,
    last=st.booleans(),
)
def test_a_long_one_that_it_accepts_the_parser_reads_alike(
    length: int, there: int, at: int, cut: int, inserted: bytes, length_line: bytes, last: bool
) -> None:
    first = a_request(b"{}", length_line=length_line, last=last)
    head = learned(first, b"{}")
    second = a_request(b"x" * length, length_line=length_line, last=last)
    second = second[: len(second) - length + min(there, length)]
    mutated = second[:at] + inserted + second[at + cut :]

    found = head.long_body_in(mutated)

    if found is not None:
        body, missing = found
        parsed, before = Parsed(mutated + b"y" * missing), Parsed(first)
        assert (parsed.complete, parsed.url) == (1, before.url)
        assert parsed.body == bytes(body) + b"y" * missing
        assert without_length(parsed) == without_length(before)


def without_length(parsed: Parsed) -> list[tuple[bytes, bytes]]:
    return [line for line in parsed.heads[0] if line[0] != b"content-length"]
