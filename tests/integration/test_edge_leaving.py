"""A client that leaves before its reply has ended, and one that stays and does not read it."""

import socket
import time

import pytest
from tests.support.edge import METERED, EdgeServer, a_body, become_known, raw_request, until
from tests.support.http import BodyCutError

# --- a client that leaves -----------------------------------------------------------------------


@pytest.mark.parametrize("do", ["wait", "stream"])
@pytest.mark.parametrize("leave", ["close", "reset", "end_sending"])
def test_a_client_that_leaves_ends_its_request_at_once(
    edge: EdgeServer, do: str, leave: str
) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body(do)))
        until(lambda: edge.door.calls)
        getattr(client, leave)()

        until(lambda: edge.door.cancelled, 1.0)


def test_no_more_is_read_for_a_client_that_has_left(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body("stream")))
        client.read_head()

    until(lambda: edge.door.cancelled)
    assert edge.door.pressures == [True]


def test_a_client_that_leaves_half_a_long_body_is_forgotten(edge: EdgeServer) -> None:
    with edge.client() as client:
        become_known(client)
        client.send(raw_request(a_body(pad="x" * 300_000))[:200_000])
        until(lambda: any(one._missing for one in list(edge.door.connections)))
    until(lambda: not edge.connections)
    assert len(edge.door.calls) == 2


def test_a_client_that_leaves_half_a_body_is_forgotten(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(METERED[:-3])
        until(lambda: edge.connections == 1)

    until(lambda: edge.connections == 0)
    assert edge.door.calls == []


def test_a_reply_that_is_cut_has_no_end(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body("cut")))
        with pytest.raises(BodyCutError):
            client.read_reply()


# --- a client that does not read ----------------------------------------------------------------


def small_window(port: int, size: int = 4096) -> socket.socket:
    client = socket.socket()
    client.settimeout(5)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    client.connect(("127.0.0.1", port))
    return client


def test_a_slow_reader_presses_and_releases(edge: EdgeServer) -> None:
    with small_window(edge.port) as client:
        client.sendall(raw_request(a_body("flood", chunks=100)))
        until(lambda: edge.door.pressures == [True])
        edge.do(edge.door.release.set)
        received = 0
        while received < 100 * 65536:
            received += len(client.recv(65536))
        until(lambda: edge.door.finished)


def test_a_slow_reader_that_catches_up_releases(edge: EdgeServer) -> None:
    with small_window(edge.port) as client:
        client.sendall(raw_request(a_body("flood", chunks=100)))
        until(lambda: edge.door.pressures == [True])
        received = 0
        while received < 100 * 65536:
            received += len(client.recv(65536))
        until(lambda: edge.door.pressures == [True, False])


def test_a_client_that_never_reads_is_cut_and_its_request_cancelled(quick: EdgeServer) -> None:
    with small_window(quick.port) as client:
        client.sendall(raw_request(a_body("flood", chunks=100)))
        until(lambda: quick.door.cancelled, 3.0)
        until(lambda: quick.connections == 0)


def test_a_client_that_reads_slowly_is_not_cut(quick: EdgeServer) -> None:
    with small_window(quick.port, 256 * 1024) as client:
        client.sendall(raw_request(a_body("flood", chunks=300)))
        reader = client.makefile("rb")
        for _ in range(12):
            time.sleep(0.1)
            assert len(reader.read(1_000_000)) == 1_000_000
        reader.close()
        assert quick.door.cancelled == []


@pytest.mark.parametrize("closing", [False, True])
def test_a_finished_reply_that_nobody_reads_does_not_keep_its_connection(
    quick: EdgeServer, closing: bool
) -> None:
    lines = ["Connection: close"] if closing else []
    quick.do(quick.door.release.set)
    with small_window(quick.port) as client:
        client.sendall(raw_request(a_body("flood", chunks=100), *lines))
        until(lambda: quick.door.finished)
        until(lambda: quick.connections == 0, 4.0)


@pytest.mark.parametrize("closing", [False, True])
def test_the_rest_of_a_reply_that_nobody_reads_does_not_keep_its_connection(
    quick: EdgeServer, closing: bool
) -> None:
    lines = ["Connection: close"] if closing else []
    with small_window(quick.port) as client:
        client.sendall(raw_request(a_body("fill"), *lines))
        until(lambda: quick.door.finished)
        assert quick.connections == 1
        until(lambda: quick.connections == 0, 4.0)


def test_an_apps_reply_that_nobody_reads_does_not_keep_its_connection(quick: EdgeServer) -> None:
    with small_window(quick.port) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        until(lambda: quick.connections == 1)
        until(lambda: quick.connections == 0, 4.0)
