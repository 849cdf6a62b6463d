"""The kinds of addresses that a peer may have. A router that learns addresses from the network allows only some."""

from __future__ import annotations

from enum import Flag, auto
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_METADATA = frozenset(
    {
        "169.254.169.254",  # most clouds
        "169.254.170.2",  # containers of AWS
        "169.254.170.23",  # pods of AWS
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",
        "fd20:ce::254",  # Google
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle
    }
)
"""Where clouds tell a machine its credentials."""
_NAT64 = IPv6Network("64:ff9b::/96")
_THIS_NETWORK = 2**24
"""The addresses below this one, 0.0.0.0/8, mean this host itself."""


class AddressKinds(Flag):
    """Kinds of IP addresses. A `Peer` says which of them may be dialled.

    Attributes:
        ROUTED: Addresses of hosts that are none of the others, private networks included.
        LINK_LOCAL: Addresses that are valid on one link, such as fe80::1%eth0.
        LOOPBACK: Addresses of this host itself.
        OTHER: Addresses of no host: unspecified, multicast and reserved ones, and those at which a cloud tells a
            machine its credentials.
        ANY: All of them.
    """

    ROUTED = auto()
    LINK_LOCAL = auto()
    LOOPBACK = auto()
    OTHER = auto()
    ANY = ROUTED | LINK_LOCAL | LOOPBACK | OTHER

    @classmethod
    def of(cls, address: str) -> AddressKinds:
        """Return the kind of an IP address, with or without a zone. An IPv4 address within an IPv6 one counts.

        Raises:
            ValueError: It is not an IP address.
        """
        parsed = ip_address(address.partition("%")[0])
        embedded = _embedded(parsed) if isinstance(parsed, IPv6Address) else None
        if embedded is not None:
            parsed = embedded
        if str(parsed) in _METADATA or parsed.is_multicast or parsed.is_unspecified:
            return cls.OTHER
        if parsed.is_loopback:
            return cls.LOOPBACK
        if parsed.is_link_local:
            return cls.LINK_LOCAL
        if isinstance(parsed, IPv4Address) and (parsed.is_reserved or int(parsed) < _THIS_NETWORK):
            return cls.OTHER
        return cls.ROUTED


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address to which packets for `address` are sent in the end; None if there is none."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
