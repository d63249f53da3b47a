"""Which addresses the gateway connects to, and which never.

An upstream's address comes from the configuration alone, so nobody but the operator can point the
gateway anywhere. What is left is an address that is not what it looks like: a name that its owner
points at the cloud's metadata service, which hands out the machine's own credentials, or a number
written so that no list of texts has it (`http://2852039166`). So what is judged is the address that
a connection is about to be made to, after the name was looked up, and that very address is then
connected to: a second look-up could give another one (DNS rebinding).

Metadata services are refused always, link-local addresses unless an upstream's setting allows them.
Loopback and private networks are where most model servers are, and are allowed.
"""

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_METADATA = tuple(
    ip_network(network)
    for network in (
        "169.254.169.0/24",  # AWS, Google, Azure, OpenStack and most others: 169.254.169.254
        "169.254.170.0/24",  # AWS, credentials of ECS tasks and EKS pods
        "169.254.42.42/32",  # Scaleway
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure's wire server
        "192.0.0.192/32",  # Oracle
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google
        "fe80::a9fe:a9fe/128",  # OpenStack
    )
)
_METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data.ec2.internal"}
)
_LINK_LOCAL = (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))
# What carries an IPv4 address in its last four bytes: mapped, compatible, NAT64.
_CARRIERS = tuple(
    ip_network(network)
    for network in ("::ffff:0:0/96", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96")
)


def refusal_of_host(host: str, *, allow_link_local: bool) -> str | None:
    """Why an upstream may not be at this host of a URL, None where nothing is known against it: a
    name must be looked up first."""
    if host.rstrip(".").lower() in _METADATA_NAMES:
        return "it is a cloud's metadata service, which gives out credentials"
    address = written_out(host)
    return None if address is None else refusal(address, allow_link_local=allow_link_local)


def refusal(address: str, *, allow_link_local: bool) -> str | None:
    """Why nothing may be sent to this address, None where it may be connected to."""
    for form in _forms(address):
        if any(form in network for network in _METADATA):
            return "it is a cloud's metadata service, which gives out credentials"
        if not allow_link_local and any(form in network for network in _LINK_LOCAL):
            return "it is a link-local address, which `allow_link_local` would have to allow"
    return None


def written_out(host: str) -> str | None:
    """The address that a resolver reads in it without asking anybody: also `0xa9fea9fe`, `0251.254`
    and `2852039166`; None for a name."""
    try:
        return str(ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def _forms(address: str) -> Iterator[IPv4Address | IPv6Address]:
    """The address, and what reaches the same machine by another protocol."""
    own = ip_address(address)
    yield own
    if isinstance(own, IPv4Address):
        return
    if any(own in network for network in _CARRIERS):
        yield IPv4Address(int(own) & 0xFFFFFFFF)
    if own.sixtofour is not None:
        yield own.sixtofour
    if own.teredo is not None:
        yield own.teredo[1]
