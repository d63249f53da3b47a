"""What the edge refuses: no HTTP, a head or a body that is too large, a type that is not JSON."""

import time

import pytest
from tests.support.edge import CHAT, REQUEST_ID, EdgeServer, a_body, raw_request

from tollway.api.body import BODY_BYTES_MAX
from tollway.api.edge import HEAD_BYTES_MAX

POST = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HELLO\r\n\r\n",
        b"GET / HTTP/7.3\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /plain HTTP/1.1\r\n\r\n",
        b"GET http://x/plain HTTP/1.1\r\n\r\n",
        b"GET /plain HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        b"GET /plain HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        raw_request(a_body()).replace(b"host: x\r\n", b""),
        raw_request(a_body(), "Host: x"),
        raw_request(a_body(), "Host: y", version="1.0"),
        raw_request(a_body(), "Transfer-Encoding: chunked"),
        raw_request(a_body(), f"Content-Length: {len(a_body())}"),
        raw_request(b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"")
        + b"zz\r\n",
        b"POST /plain HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request_gets_the_contracts_error(edge: EdgeServer, data: bytes) -> None:
    with edge.client() as client:
        client.send(data)
        reply = client.read_reply()
        client.end_sending()
        assert client.at_end()

    assert reply.status == 400
    assert reply.json()["error"]["code"] == "invalid_http"
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert reply.header("x-request-id") == REQUEST_ID
    assert reply.header("connection") == "close"
    assert edge.door.calls == []


@pytest.mark.parametrize("host", [b"host: x\r\n", b"host:\r\n", b""])
def test_a_request_of_http_1_0_may_have_no_host(edge: EdgeServer, host: bytes) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body(), version="1.0").replace(b"host: x\r\n", host))
        assert client.read_reply().status == 200


@pytest.mark.parametrize(
    "head",
    [
        "x: " + "y" * HEAD_BYTES_MAX,
        "x: " + "y" * 20 * HEAD_BYTES_MAX,
        "\r\n".join(f"x-{i}: " + "y" * 1000 for i in range(40)),
        "\r\n".join("a:" for _ in range(HEAD_BYTES_MAX // 5)),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/plain"])
def test_a_head_over_32_kib_is_refused(edge: EdgeServer, head: str, path: str) -> None:
    with edge.client() as client:
        client.send(f"POST {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode())
        reply = client.read_reply()

    assert reply.status == 431
    assert reply.json()["error"]["code"] == "request_header_fields_too_large"


def test_a_url_counts_as_head(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.request("GET", "/" + "x" * HEAD_BYTES_MAX)
        assert client.read_reply().status == 431


def test_a_head_that_never_ends_is_refused(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(5):
            client.send(b"y" * 16_000)
            time.sleep(0.01)
        assert client.read_reply().status == 431


@pytest.mark.parametrize("pieces", [1, 8, 60])
def test_a_head_under_32_kib_is_taken_in_any_pieces(edge: EdgeServer, pieces: int) -> None:
    lines = [f"x-{i}: " + "y" * 990 for i in range(30)]
    data = raw_request(a_body(), *lines)
    with edge.client() as client:
        size = len(data) // pieces
        for at in range(0, len(data), size):
            client.send(data[at : at + size])
            time.sleep(0.001)
        assert client.read_reply().status == 200


def test_a_body_over_4_mib_is_refused_by_its_length(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(f"{POST}content-length: {BODY_BYTES_MAX + 1}\r\n\r\n".encode())
        reply = client.read_reply()
        assert reply.status == 413
        assert reply.header("connection") == "close"


def test_the_refusal_of_a_body_arrives_while_the_body_is_still_sent(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(f"{POST}content-length: {2 * BODY_BYTES_MAX}\r\n\r\n".encode())
        for _ in range(64):
            client.send(b"x" * 65536)
        assert client.read_reply().status == 413


def test_a_chunked_body_is_refused_once_it_has_grown_over_4_mib(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(70):
            client.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        reply = client.read_reply()
        assert reply.status == 413
        assert reply.json()["error"]["code"] == "payload_too_large"
    assert len(edge.door.calls) == 1
    assert edge.door.calls[0].body == b""


def test_a_body_of_exactly_4_mib_is_taken(edge: EdgeServer) -> None:
    body = a_body() + b" " * (BODY_BYTES_MAX - len(a_body()))
    with edge.client() as client:
        client.send(raw_request(body))
        assert client.read_reply().body == b"%d" % BODY_BYTES_MAX


@pytest.mark.parametrize(
    "line",
    ["Content-Type: text/plain", "Content-Type: multipart/form-data; boundary=x"],
)
def test_a_body_of_another_type_is_refused(edge: EdgeServer, line: str) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body(), line))
        assert client.read_reply().status == 415
        client.send(raw_request(a_body(), "Content-Type: application/json; charset=utf-8"))
        assert client.read_reply().status == 200


def test_a_compressed_body_is_refused(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body(), "Content-Encoding: gzip"))
        assert client.read_reply().status == 415
