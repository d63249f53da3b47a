"""Who is asking: the peer of the connection, or whom a trusted proxy says that it asks for."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

Network = IPv4Network | IPv6Network


def client_address(peer: str, forwarded_for: bytes | None, trusted: Sequence[Network]) -> str:
    """The last address in X-Forwarded-For that is not a trusted proxy's; the peer where that is not believed."""
    if forwarded_for is None or not trusted or not _is_trusted(peer, trusted):
        return peer
    for hop in reversed(forwarded_for.decode("latin-1").split(",")):
        address = hop.strip()
        if not _is_trusted(address, trusted):
            return address
    return peer


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in trusted)
