"""Metadata services are refused in every form that a resolver or a kernel takes for theirs."""

import pytest

from tollway.reach import refusal, refusal_of_host

METADATA = [
    "169.254.169.254",
    "169.254.169.253",
    "169.254.170.2",
    "169.254.170.23",
    "169.254.42.42",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fe80::a9fe:a9fe",
    "fe80::a9fe:a9fe%eth0",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::ffff:0:a9fe:a9fe",
    "::169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
]
LINK_LOCAL = [
    "169.254.0.1",
    "169.254.255.254",
    "fe80::1",
    "fe80::1%eth0",
    "febf::1",
    "::ffff:169.254.7.7",
]
USUAL = [
    "127.0.0.1",
    "::1",
    "10.1.2.3",
    "172.16.0.9",
    "192.168.1.4",
    "100.64.0.7",
    "169.253.255.255",
    "169.255.0.1",
    "8.8.8.8",
    "2606:4700::6810:84e5",
    "fd12:3456::1",
    "fec0::1",
]


@pytest.mark.parametrize("address", METADATA)
@pytest.mark.parametrize("allow_link_local", [False, True])
def test_a_metadata_service_is_refused_whatever_is_allowed(
    address: str, allow_link_local: bool
) -> None:
    why = refusal(address, allow_link_local=allow_link_local)

    assert why is not None
    assert "metadata" in why


@pytest.mark.parametrize("address", LINK_LOCAL)
def test_a_link_local_address_is_refused_unless_it_is_allowed(address: str) -> None:
    why = refusal(address, allow_link_local=False)

    assert why is not None
    assert "allow_link_local" in why
    assert refusal(address, allow_link_local=True) is None


@pytest.mark.parametrize("address", USUAL)
def test_where_model_servers_are_may_be_connected_to(address: str) -> None:
    assert refusal(address, allow_link_local=False) is None
    assert refusal_of_host(address, allow_link_local=False) is None


@pytest.mark.parametrize(
    "host",
    [
        *METADATA,
        "2852039166",
        "0xa9fea9fe",
        "0xA9.0xFE.0xA9.0xFE",
        "0251.0376.0251.0376",
        "169.254.43518",
        "169.16689662",
        "metadata.google.internal",
        "metadata.google.internal.",
        "Metadata.Google.Internal",
        "metadata",
    ],
)
def test_a_host_is_refused_in_every_way_of_writing_it(host: str) -> None:
    assert refusal_of_host(host, allow_link_local=True) is not None


@pytest.mark.parametrize("host", ["gpu-1.example", "localhost", "2130706433", "a" * 80, "x_y"])
def test_nothing_is_held_against_a_name_before_it_is_looked_up(host: str) -> None:
    assert refusal_of_host(host, allow_link_local=False) is None
