from ipaddress import ip_network

import pytest

from tollway.api.address import client_address, client_request_id

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("::1/128"))


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", b"198.51.100.7", "192.0.2.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", b"198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", b"203.0.113.9, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", b"198.51.100.7, 10.2.2.2", "198.51.100.7"),
        ("10.0.0.1", b"10.3.3.3,10.2.2.2", "10.3.3.3"),
        ("10.0.0.1", b"198.51.100.7:4711", "198.51.100.7"),
        ("10.0.0.1", b"[2001:db8::7]:4711", "2001:db8::7"),
        ("10.0.0.1", b"198.51.100.7, unknown", "10.0.0.1"),
        ("10.0.0.1", b"\xff\r\nnonsense", "10.0.0.1"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("::ffff:10.0.0.1", b"198.51.100.7", "198.51.100.7"),
        ("::1", b"2001:db8::7", "2001:db8::7"),
        ("", b"198.51.100.7", ""),
    ],
)
def test_only_a_trusted_proxy_says_for_whom_it_asks(
    peer: str, forwarded_for: bytes | None, client: str
) -> None:
    assert client_address(peer, forwarded_for, TRUSTED) == client


def test_without_trusted_proxies_the_peer_is_the_client() -> None:
    assert client_address("10.0.0.1", b"198.51.100.7", ()) == "10.0.0.1"


def test_of_a_clients_request_id_255_characters_are_kept() -> None:
    assert client_request_id(b"mine-\xe9") == "mine-\xe9"
    assert client_request_id(b"m" * 256) == "m" * 255
    assert client_request_id(None) is None
