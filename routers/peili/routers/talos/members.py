"""What Talos's resource ``Members.cluster.talos.dev`` says, as peers. No files and no processes here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from typing import Any, TypeGuard, cast

from peili.mirror import Peer

TYPE = "Members.cluster.talos.dev"
_LABELS = ("hostname", "machineType", "operatingSystem")
_SPACE = re.compile(r"[ \t\r\n]*")


class NotMembers(ValueError):
    """The text is not what `talosctl get members -o json` prints. The message is one line that says why."""


def peers_of(text: str, scheme: str, port: int) -> list[Peer]:
    """The members in `text`, in order, each id once; those without an address that others can reach are left out.

    `text` is one JSON object after another, or a list of them. Raises NotMembers, also where there is no member: a
    cluster has one at least, so this is an answer cut short.
    """
    found: dict[str, Peer] = {}
    for place, value in enumerate(_values(text), 1):
        peer = _peer(f"member {place}", value, scheme, port)
        if peer.urls:  # several nodes were asked: each tells all members
            found.setdefault(peer.id, peer)
    if not found:
        raise NotMembers("no member has an address; what talosctl get members -o json prints is wanted")
    return list(found.values())


def _values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    place = _past_space(text, 0)
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            where = error if isinstance(error, ValueError) else "nested too deeply"
            raise NotMembers(f"no JSON: {where}; what talosctl get members -o json prints is wanted") from error
        if _is_list(value):
            yield from value
        else:
            yield value
        place = _past_space(text, place)


def _past_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _peer(where: str, value: Any, scheme: str, port: int) -> Peer:
    metadata, spec = _table(where, value, "metadata"), _table(where, value, "spec")
    if metadata.get("type") != TYPE:
        raise NotMembers(f"{where}: metadata.type is {TYPE}, not {_shown(metadata.get('type'))}")
    identity = spec.get("nodeId") or metadata.get("id")
    if not _is_text(identity):
        raise NotMembers(f"{where}: spec.nodeId is a text, not {_shown(identity)}")
    addresses: Any = spec.get("addresses")
    if not _is_list(addresses):
        raise NotMembers(f"{where}: spec.addresses is a list, not {_shown(addresses)}")
    hosts = [host for each in addresses if (host := _host(where, each)) is not None]
    labels = {key: said for key in _LABELS if _is_text(said := spec.get(key))}
    return Peer(identity, tuple(f"{scheme}://{host}:{port}" for host in hosts), labels=labels)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value != "" and value.isprintable()


def _table(where: str, value: Any, key: str) -> dict[str, Any]:
    table = cast("dict[str, Any]", value).get(key) if isinstance(value, dict) else None
    if not isinstance(table, dict):
        raise NotMembers(f"{where}: an object with metadata and spec, not {_shown(value)}")
    return cast("dict[str, Any]", table)


def _host(where: str, value: Any) -> str | None:
    """An address as it stands in a URL; None for one that means something else on each host."""
    try:
        address = ip_address(value if isinstance(value, str) else "")
    except ValueError as error:
        raise NotMembers(f"{where}: spec.addresses has IP addresses, not {_shown(value)}") from error
    if address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast:
        return None
    if isinstance(address, IPv6Address):
        return None if address.scope_id else f"[{address}]"
    return str(address)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
