"""The network interfaces for multicast DNS, and this host's addresses on them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

import ifaddr

from peili.mirror import AddressKinds
from peili.routers.mdns.service import IPAddress, address_order, parse_address


@dataclass(frozen=True, slots=True)
class NetworkAttachment:
    """How this host is attached to the network.

    Attributes:
        interfaces: The interfaces as zeroconf expects them: IPv4 addresses, and indexes of interfaces with IPv6.
        addresses: This host's addresses there, without scopes. Link-local addresses come last.
        links: The number of links.
    """

    interfaces: tuple[str | int, ...]
    addresses: tuple[str, ...]
    links: int = field(default=1, compare=False)

    @property
    def dialled(self) -> AddressKinds:
        """The kinds of addresses that an announcement may have.

        Only programs of this host can announce themselves on loopback, so they may announce a loopback address there.
        """
        is_loopback = all(AddressKinds.of(each) is AddressKinds.LOOPBACK for each in self.addresses)
        return AddressKinds.ROUTED | (AddressKinds.LOOPBACK if is_loopback else AddressKinds.LINK_LOCAL)


def find_attachment(wanted: Collection[str], versions: Collection[int]) -> NetworkAttachment:
    """Return the interfaces and addresses to use.

    Args:
        wanted: Names or addresses of interfaces. If empty, all interfaces with an IPv4 or a routable IPv6 address are
            used. This excludes most interfaces of a container network. Loopback is used only if there is no other one.
        versions: The IP versions to use: 4, 6 or both.
    """
    adapters = [
        (adapter.nice_name, adapter.index or 0, [each for each in _addresses_of(adapter) if each.version in versions])
        for adapter in ifaddr.get_adapters()
    ]
    if wanted:
        chosen = [
            (index, found if name in wanted else [each for each in found if str(each) in wanted])
            for name, index, found in adapters
        ]
    else:
        chosen = [
            (index, found)
            for _, index, found in adapters
            if any(each.version == 4 or not each.is_link_local for each in found)
        ]
        chosen = [each for each in chosen if not any(address.is_loopback for address in each[1])] or chosen
    interfaces: list[str | int] = []
    addresses: set[IPAddress] = set()
    for index, found in chosen:
        interfaces += [str(each) for each in found if each.version == 4]
        interfaces += [index] if any(each.version == 6 for each in found) else []
        addresses.update(found)
    in_order = sorted(addresses, key=address_order)
    links = len({index for index, found in chosen if found})
    return NetworkAttachment(tuple(sorted(interfaces, key=str)), tuple(map(str, in_order)), links)


def own_addresses() -> frozenset[str]:
    """Return all addresses of this host, without scopes."""
    return frozenset(str(each) for adapter in ifaddr.get_adapters() for each in _addresses_of(adapter))


def _addresses_of(adapter: ifaddr.Adapter) -> Iterator[IPv4Address | IPv6Address]:
    for each in adapter.ips:
        address = parse_address(each.ip[0].partition("%")[0] if isinstance(each.ip, tuple) else each.ip)
        if address is not None:
            yield address
