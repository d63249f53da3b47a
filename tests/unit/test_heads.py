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


def test_only_one_message_whole_and_alone_is_learned_from() -> None:
    request = a_request(b"{}")

    assert LearnedHead.of(request + b"GET /", 2) is None
    assert LearnedHead.of(request[:-1], 2) is None
    assert LearnedHead.of(request[:-2], 0) is None
    assert LearnedHead.of(request.replace(b"Content-Length: 2", b"X: 2"), 2) is None


@settings(max_examples=400, deadline=None)
@given(
    body=st.binary(min_size=1, max_size=40),
    at=st.integers(0, 200),
    cut=st.integers(0, 3),
    inserted=st.sampled_from(
        [b"", b" ", b"0", b"9", b"\r\n", b"\n", b"\r", b"\t", b"Content-Length: 3\r\n", b"\x00"]
    ),
    length_line=st.sampled_from(
        [
            b"Content-Length: %d",
            b"content-length:%d",
            b"CONTENT-LENGTH:  %d ",
            b"Content-length: 0%d",
        ]
    ),
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
        without_length = [line for line in parsed.heads[0] if line[0] != b"content-length"]
        assert without_length == [line for line in before.heads[0] if line[0] != b"content-length"]
