"""Which network interfaces multicast DNS is spoken on, and this host's addresses there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import ifaddr


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where a host is attached. `speak_on` is in zeroconf's terms: IPv4 addresses, and the indexes of interfaces with
    IPv6. `addresses` are this host's there, without scopes; those that work from one link only come last.
    """

    speak_on: tuple[str | int, ...]
    addresses: tuple[str, ...]


def attachment(wanted: Collection[str], versions: Collection[int]) -> Attachment:
    """The interfaces and addresses that are `wanted`, by name or address, in the IP `versions` 4, 6 or both.

    Where nothing is wanted in particular: every interface that has an IPv4 or a routable IPv6 address, so not the many
    that a container network makes; loopback only where there is nothing else.
    """
    here = [
        (adapter.nice_name, adapter.index or 0, [each for each in _addresses(adapter) if each.version in versions])
        for adapter in ifaddr.get_adapters()
    ]
    if wanted:
        chosen = [(index, _wanted(name, found, wanted)) for name, index, found in here]
    else:
        chosen = [(index, found) for _, index, found in here if any(map(_is_lasting, found))]
        abroad = [(index, found) for index, found in chosen if not any(each.is_loopback for each in found)]
        chosen = abroad or chosen
    speak_on: list[str | int] = []
    addresses: set[IPv4Address | IPv6Address] = set()
    for index, found in chosen:
        speak_on += [str(each) for each in found if each.version == 4]
        speak_on += [index] if any(each.version == 6 for each in found) else []
        addresses.update(found)
    return Attachment(tuple(sorted(speak_on, key=str)), tuple(str(each) for each in sorted(addresses, key=nearness)))


def nearness(address: IPv4Address | IPv6Address) -> tuple[bool, int, int]:
    """Sorts addresses: those that work from one link only come last, IPv4 before IPv6."""
    return (address.is_link_local, address.version, int(address))


def _addresses(adapter: ifaddr.Adapter) -> Iterator[IPv4Address | IPv6Address]:
    for each in adapter.ips:
        yield ip_address(each.ip[0].partition("%")[0] if isinstance(each.ip, tuple) else each.ip)


def _wanted(
    name: str, found: list[IPv4Address | IPv6Address], wanted: Collection[str]
) -> list[IPv4Address | IPv6Address]:
    return found if name in wanted else [each for each in found if str(each) in wanted]


def _is_lasting(address: IPv4Address | IPv6Address) -> bool:
    return address.version == 4 or not address.is_link_local
