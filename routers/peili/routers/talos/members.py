"""Parses Talos's resource ``Members.cluster.talos.dev`` into peers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from typing import Any, TypeGuard, cast

from peili.mirror import AddressKinds, Peer

RESOURCE_TYPE = "Members.cluster.talos.dev"
_EXPECTED = "expected the output of talosctl get members -o json"
_LABELS = ("hostname", "machineType", "operatingSystem")
_SPACE = re.compile(r"[ \t\r\n]*")


class InvalidMembers(ValueError):
    """The text is not what ``talosctl get members -o json`` prints. The message is one line that says why."""


def parse_members(text: str, scheme: str, port: int) -> list[Peer]:
    """Parse the output of ``talosctl get members -o json``.

    Args:
        text: One JSON object after another, or a list of them.
        scheme: The scheme of the peers' URLs.
        port: The port of the peers' URLs.

    Returns:
        The members in order, each id once, without those that have no address that other hosts can reach.

    Raises:
        InvalidMembers: The text is malformed, or has no member. A cluster has at least one, so the output is then not
            complete.
    """
    found: dict[str, Peer] = {}
    for number, value in enumerate(_parse_values(text), 1):
        peer = _parse_peer(f"member {number}", value, scheme, port)
        if peer.urls:
            found.setdefault(peer.id, peer)  # if talosctl has asked several nodes, each of them lists all members
    if not found:
        raise InvalidMembers(f"no member has an address; {_EXPECTED}")
    return list(found.values())


def _parse_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    position = _skip_space(text, 0)
    while position < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            reason = error if isinstance(error, ValueError) else "nested too deeply"
            raise InvalidMembers(f"not JSON: {reason}; {_EXPECTED}") from error
        if _is_list(value):
            yield from value
        else:
            yield value
        position = _skip_space(text, position)


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _parse_peer(place: str, value: Any, scheme: str, port: int) -> Peer:
    metadata, spec = _table_in(place, value, "metadata"), _table_in(place, value, "spec")
    if metadata.get("type") != RESOURCE_TYPE:
        raise InvalidMembers(f"{place}: metadata.type is {RESOURCE_TYPE}, not {_shorten(metadata.get('type'))}")
    identity = spec.get("nodeId") or metadata.get("id")
    if not _is_text(identity):
        raise InvalidMembers(f"{place}: spec.nodeId is a text, not {_shorten(identity)}")
    addresses: Any = spec.get("addresses")
    if not _is_list(addresses):
        raise InvalidMembers(f"{place}: spec.addresses is a list, not {_shorten(addresses)}")
    hosts = [host for each in addresses if (host := _url_host(place, each)) is not None]
    labels = {key: text for key in _LABELS if _is_text(text := spec.get(key))}
    return Peer(identity, tuple(f"{scheme}://{host}:{port}" for host in hosts), None, labels, AddressKinds.ROUTED)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value != "" and value.isprintable()


def _table_in(place: str, value: Any, key: str) -> dict[str, Any]:
    table = cast("dict[str, Any]", value).get(key) if isinstance(value, dict) else None
    if not isinstance(table, dict):
        raise InvalidMembers(f"{place}: an object with metadata and spec, not {_shorten(value)}")
    return cast("dict[str, Any]", table)


def _url_host(place: str, value: Any) -> str | None:
    """Return an address as it stands in a URL; None for an address that differs from host to host."""
    try:
        address = ip_address(value if isinstance(value, str) else "")
    except ValueError as error:
        raise InvalidMembers(f"{place}: spec.addresses has IP addresses, not {_shorten(value)}") from error
    if address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast:
        return None
    if isinstance(address, IPv6Address):
        return None if address.scope_id else f"[{address}]"
    return str(address)


def _shorten(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
