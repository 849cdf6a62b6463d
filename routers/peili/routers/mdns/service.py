"""Writes a peer as a DNS-SD service (RFC 6763), and reads one.

The TXT record has ``id`` and ``scheme``, if needed ``path`` and ``name`` (the name that the certificate must show), and
labels such as ``label.zone=…``. The port and the addresses are those of the service. A service of another host may have
any content, so everything is checked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias
from urllib.parse import urlsplit

from zeroconf.asyncio import AsyncServiceInfo

from peili.mirror import AddressKinds, Peer

SERVICE_TYPE = "_peili._tcp.local."
TTL = 60
"""Seconds for which other hosts cache this host's records. A host that has crashed is known for that long."""
IPAddress: TypeAlias = IPv4Address | IPv6Address

_LABEL = "label."
_MAX_TEXT = 255  # bytes of one key=value (RFC 6763, section 6.1)
_MAX_LABELS = 16
_MAX_URLS = 8


def to_service(peer: Peer, labels: Mapping[str, str], addresses: Sequence[str]) -> AsyncServiceInfo:
    """Write `peer`, which is this host, as a service.

    Args:
        peer: This host.
        labels: Labels in addition to those of `peer`.
        addresses: The addresses to announce if the URLs of `peer` have host names instead of addresses.

    Raises:
        ValueError: The peer has no URL, or something does not fit into a TXT record.
    """
    if not peer.urls:
        raise ValueError("this host has no URL that could be announced")
    url = urlsplit(peer.urls[0])
    text = {"id": peer.id, "scheme": url.scheme, **({"path": url.path} if url.path else {})}
    name = peer.tls_name
    if name is None and url.scheme == "https" and parse_address(url.hostname or "") is None:
        name = url.hostname  # other hosts connect to an address, but the certificate shows the host name
    if name:
        text["name"] = name
    text.update({_LABEL + key: value for key, value in {**peer.labels, **labels}.items()})
    for key, value in text.items():
        if not _fits(key, value):
            raise ValueError(f"{key}={value} is longer than {_MAX_TEXT} bytes")
    return AsyncServiceInfo(
        SERVICE_TYPE,
        f"{_instance_name(peer.id)}.{SERVICE_TYPE}",
        port=url.port or (443 if url.scheme == "https" else 80),
        properties=text,
        server=f"peili-{_short_hash(peer.id)}.local.",  # the machine's own name may have records of another program
        parsed_addresses=_addresses_in(peer.urls) or list(addresses),
        host_ttl=TTL,
        other_ttl=TTL,
    )


def from_service(
    info: AsyncServiceInfo,
    versions: Iterable[int],
    dialled: AddressKinds = AddressKinds.ROUTED | AddressKinds.LINK_LOCAL,
    *,
    has_one_link: bool = True,
) -> Peer:
    """Read the peer that announced `info`, with those of its addresses that may be used.

    A link-local IPv6 address has the scope of the link on which the announcement came: zeroconf adds it, not the peer.
    A link-local IPv4 address has none, so it is used only if there is one link.

    Args:
        info: The announcement.
        versions: The IP versions to use.
        dialled: The kinds of addresses to use.
        has_one_link: Whether this host takes part in multicast DNS on one link only.

    Raises:
        ValueError: The service is not a valid peer.
    """
    text = {key: value or "" for key, value in info.decoded_properties.items()}
    identity, scheme, port = text.get("id", ""), text.get("scheme", "http"), info.port or 0
    if not identity or not identity.isprintable() or not 0 < port < 65536:
        raise ValueError(f"no usable id or port: {identity!a}, {port}")
    path = text.get("path", "")
    if path and not path.startswith("/"):
        raise ValueError(f"not a path: {path!a}")
    addresses = [ip_address(each) for each in info.parsed_scoped_addresses()]
    usable = (each for each in addresses if each.version in versions and AddressKinds.of(str(each)) in dialled)
    wanted = [each for each in usable if not each.is_link_local or _has_link(each, has_one_link)]
    urls = tuple(f"{scheme}://{_url_host(each)}:{port}{path}" for each in sorted(wanted, key=address_order)[:_MAX_URLS])
    if not urls:
        raise ValueError("no usable address")
    labels = {key.removeprefix(_LABEL): value for key, value in text.items() if key.startswith(_LABEL)}
    if len(labels) > _MAX_LABELS:
        raise ValueError(f"{len(labels)} labels")
    return Peer(identity, urls, text.get("name") or None, labels, dialled)


def fits_label(key: str, value: str) -> bool:
    """Return whether the label `key` with this value fits into a TXT record."""
    return _fits(_LABEL + key, value)


def address_order(address: IPAddress) -> tuple[bool, int, int]:
    """Return a sort key: link-local addresses come last, IPv4 comes before IPv6."""
    return (address.is_link_local, address.version, int(address))


def parse_address(text: str) -> IPAddress | None:
    """Return the IP address in `text`; None if it is not one."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _fits(key: str, value: str) -> bool:
    return len(f"{key}={value}".encode()) <= _MAX_TEXT


def _addresses_in(urls: Sequence[str]) -> list[str]:
    """Return the addresses in `urls`, of those that differ from the first only in the host: a service has one port."""
    parts = [urlsplit(url) for url in urls]
    first = (parts[0].scheme, parts[0].port, parts[0].path)
    hosts = [each.hostname or "" for each in parts if (each.scheme, each.port, each.path) == first]
    addresses = [address for host in hosts if (address := parse_address(host)) is not None]
    return [str(each) for each in addresses if not each.is_unspecified]


def _has_link(address: IPAddress, has_one_link: bool) -> bool:
    """Return whether it is known on which link a link-local address is."""
    return address.scope_id is not None if isinstance(address, IPv6Address) else has_one_link


def _url_host(address: IPAddress) -> str:
    return f"[{address}]" if address.version == 6 else str(address)


def _instance_name(identity: str) -> str:
    """Return `identity` as the name of a service instance: one DNS label of at most 63 bytes."""
    plain = re.sub(r"[^A-Za-z0-9-]+", "-", identity)
    return plain if plain == identity and len(plain) <= 63 else f"{plain[:48]}-{_short_hash(identity)}"


def _short_hash(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:12]
