"""Who is asking: the peer of the connection, or whom a trusted proxy says that it asks for; and
what they call their request."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network

CLIENT_REQUEST_ID_CHARACTERS_MAX = 255


def client_address(peer: str, forwarded_for: bytes | None, trusted: Sequence[Network]) -> str:
    """The last address in X-Forwarded-For that is not a trusted proxy's; the peer where that is not
    believed. What is no address ends the search: it could be anything, and new each time."""
    if forwarded_for is None or not trusted:
        return peer
    client = peer
    for hop in (peer, *reversed(forwarded_for.decode("latin-1").split(","))):
        address = _parse(hop.strip())
        if address is None:
            break
        client = str(address)
        if not any(address in network for network in trusted):
            break
    return client


def client_request_id(header: bytes | None) -> str | None:
    """X-Request-Id, as far as it is kept."""
    return None if header is None else header.decode("latin-1")[:CLIENT_REQUEST_ID_CHARACTERS_MAX]


def _parse(hop: str) -> IPv4Address | IPv6Address | None:
    """Some proxies add the port: `192.0.2.1:4711`, `[2001:db8::1]:4711`."""
    host = hop
    if hop.startswith("["):
        host = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        host = hop.partition(":")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return None
    # A socket that takes both families shows an IPv4 peer so.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped
