"""How a peer is written as a service of multicast DNS (RFC 6763), and read from one.

The TXT record has ``id`` and ``scheme``, where needed ``path`` and ``name`` (what a certificate must show), and labels
as ``label.zone=…``. Port and addresses are those of the service. What others send is not trusted to be sane.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from zeroconf.asyncio import AsyncServiceInfo

from peili.mirror import Peer
from peili.routers.mdns.interfaces import nearness

SERVICE_TYPE = "_peili._tcp.local."
TTL = 60
"""Seconds for which others believe a record of ours; so long a host that crashed stays known."""

_LABEL = "label."
_MAX_TEXT = 255  # RFC 6763, section 6.1: bytes of one key=value
_MAX_LABELS = 16
_MAX_URLS = 8


def to_service(peer: Peer, labels: Mapping[str, str], addresses: Sequence[str]) -> AsyncServiceInfo:
    """`peer`, this host, as a service. `addresses` stand in where its URLs name hosts instead of addresses.

    Raises ValueError when it can't be written as one.
    """
    if not peer.urls:
        raise ValueError("this host has no URL that could be announced")
    base = urlsplit(peer.urls[0])
    text = {"id": peer.id, "scheme": base.scheme, **({"path": base.path} if base.path else {})}
    if name := peer.tls_name or _certified_name(base.scheme, base.hostname or ""):
        text["name"] = name
    text.update({_LABEL + key: value for key, value in {**peer.labels, **labels}.items()})
    for key, value in text.items():
        if not fits(key, value):
            raise ValueError(f"{key}={value} is longer than {_MAX_TEXT} bytes")
    return AsyncServiceInfo(
        SERVICE_TYPE,
        f"{_instance(peer.id)}.{SERVICE_TYPE}",
        port=base.port or (443 if base.scheme == "https" else 80),
        properties=text,
        server=f"peili-{_short_hash(peer.id)}.local.",  # not the machine's own name, whose records others may keep
        parsed_addresses=_announced(peer.urls) or list(addresses),
        host_ttl=TTL,
        other_ttl=TTL,
    )


def from_service(info: AsyncServiceInfo, versions: Iterable[int]) -> Peer:
    """The peer that announced `info`, at its addresses of the IP `versions`. Raises ValueError for what is none."""
    text = {key: value or "" for key, value in info.decoded_properties.items()}
    identity, scheme, port = text.get("id", ""), text.get("scheme", "http"), info.port or 0
    if not identity or not identity.isprintable() or not 0 < port < 65536:
        raise ValueError(f"no usable id or port: {identity!a}, {port}")
    path = text.get("path", "")
    if path and not path.startswith("/"):
        raise ValueError(f"not a path: {path!a}")
    addresses = [ip_address(each) for each in info.parsed_scoped_addresses()]
    wanted = [each for each in addresses if each.version in versions and _reachable(each)]
    urls = tuple(f"{scheme}://{_host(each)}:{port}{path}" for each in sorted(wanted, key=nearness)[:_MAX_URLS])
    if not urls:
        raise ValueError("no usable address")
    labels = {key.removeprefix(_LABEL): value for key, value in text.items() if key.startswith(_LABEL)}
    if len(labels) > _MAX_LABELS:
        raise ValueError(f"{len(labels)} labels")
    return Peer(identity, urls, text.get("name") or None, labels)


def fits(key: str, value: str) -> bool:
    """Whether ``key=value`` fits into a TXT record."""
    return len(f"{key}={value}".encode()) <= _MAX_TEXT


def fits_label(key: str, value: str) -> bool:
    """Whether the label `key` with `value` fits into a TXT record."""
    return fits(_LABEL + key, value)


def _announced(urls: Sequence[str]) -> list[str]:
    """The addresses that `urls` name, of those that differ from the first in nothing else: a service has one port."""
    parts = [urlsplit(url) for url in urls]
    first = (parts[0].scheme, parts[0].port, parts[0].path)
    hosts = [each.hostname or "" for each in parts if (each.scheme, each.port, each.path) == first]
    addresses = [address for host in hosts if (address := _address(host)) is not None]
    return [str(each) for each in addresses if not each.is_unspecified]


def _certified_name(scheme: str, host: str) -> str | None:
    """What the certificate shows: others connect to an address, where the URL names a host."""
    return host if scheme == "https" and _address(host) is None else None


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _reachable(address: IPv4Address | IPv6Address) -> bool:
    """Whether a request can be sent there. A link-local address needs to say on which link."""
    if isinstance(address, IPv6Address) and address.is_link_local:
        return address.scope_id is not None
    return not address.is_multicast and not address.is_unspecified


def _host(address: IPv4Address | IPv6Address) -> str:
    return f"[{address}]" if address.version == 6 else str(address)


def _instance(identity: str) -> str:
    """`identity` as the name of an instance: one label of a DNS name, at most 63 bytes."""
    plain = re.sub(r"[^A-Za-z0-9-]+", "-", identity)
    return plain if plain == identity and len(plain) <= 63 else f"{plain[:48]}-{_short_hash(identity)}"


def _short_hash(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:12]
