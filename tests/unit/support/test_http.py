"""The raw client reads what is on the wire, not what it would like to read."""

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from tests.support.http import BodyCutError, RawClient


@contextmanager
def a_server_that_says(*pieces: bytes) -> Generator[RawClient]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_say, args=(listener, pieces))
        thread.start()
        with RawClient("127.0.0.1", listener.getsockname()[1]) as client:
            yield client
        thread.join()


def _say(listener: socket.socket, pieces: tuple[bytes, ...]) -> None:
    with listener.accept()[0] as peer:
        for piece in pieces:
            peer.sendall(piece)


HEAD = b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nset-cookie: b\r\n"


def test_repeated_headers_and_trailers_are_all_there() -> None:
    chunks = b"5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nX-Credits-Consumed: 3\r\n\r\n"
    with a_server_that_says(HEAD, b"Transfer-Encoding: chunked\r\n\r\n", chunks) as client:
        reply = client.read_reply()

    assert reply.head.all("Set-Cookie") == ["a", "b"]
    assert reply.body == b"hello!"
    assert reply.trailers == [("X-Credits-Consumed", "3")]


def test_two_replies_on_one_connection_are_told_apart() -> None:
    first = HEAD + b"Content-Length: 2\r\n\r\nok"
    with a_server_that_says(first + b"HTTP/1.1 204 No Content\r\n\r\n" + first) as client:
        statuses = [client.read_reply().status for _ in range(3)]
        ended = client.at_end()

    assert statuses == [200, 204, 200]
    assert ended


def test_a_body_that_stops_early_is_told() -> None:
    with (
        a_server_that_says(HEAD, b"Content-Length: 9\r\n\r\nshort") as client,
        pytest.raises(BodyCutError),
    ):
        client.read_reply()


def test_events_and_comments_come_one_by_one_across_pieces() -> None:
    pieces = (
        HEAD + b'\r\n: wait\n\ndata: {"a"',
        b': "\xc3',
        b'\xa4"}\n\nda',
        b"ta: [DONE]\n\ndata: x",
    )
    with a_server_that_says(*pieces) as client:
        client.read_head()
        comment, first, done = client.read_events()

    assert comment.comment == "wait"
    assert first.json() == {"a": "ä"}
    assert done.data == "[DONE]"
    assert first.at <= done.at
