"""Reads the EndpointSlices of a Service (discovery.k8s.io/v1), and makes peers of their endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, cast

from peili.mirror import Peer
from peili.routers.member_urls import MemberUrls

MAX_MEMBERS = 5000
"""More members are not used; it is the largest cluster that Kubernetes supports."""
PORT_NAME = "peer"
"""The name of the port to use, if a slice has several."""
_ADDRESS_TYPES = frozenset({"IPv4", "IPv6"})


@dataclass(frozen=True, slots=True)
class PodAddress:
    """An address of a pod.

    Attributes:
        pod: Identifies the pod. In a cluster with two IP families, a pod has an endpoint of each.
        name: What the peer is called: the node, else the pod, else the address.
        address: An IP address.
        port: The port of the peer door.
        node: The node of the pod, if the slice says it.
        zone: The zone of the node, if the slice says it.
    """

    pod: str
    name: str
    address: str
    port: int
    node: str | None
    zone: str | None


def read_slice(item: Mapping[str, Any], port: int | None) -> tuple[PodAddress, ...]:
    """Return the endpoints of one EndpointSlice to which requests can be sent.

    These are the pods that are ready, and those that end but still answer.

    Args:
        item: The slice. What is malformed in it is left out.
        port: The port; None for that of the slice, which is the one named ``peer``, or its only one.
    """
    port = port if port is not None else _port_of(item)
    if port is None or _text(item.get("addressType")) not in _ADDRESS_TYPES:
        return ()
    found = (_read_endpoint(each, port) for each in _tables(item.get("endpoints")))
    return tuple(each for each in found if each is not None)


def _read_endpoint(endpoint: Mapping[str, Any], port: int) -> PodAddress | None:
    conditions = _table(endpoint.get("conditions"))
    is_ready = conditions.get("ready")
    # `serving` is `ready` without the exception for pods that end. Without either, the endpoint counts as ready.
    if conditions.get("serving", is_ready) is False:
        return None
    address = _first_address(endpoint.get("addresses"))
    if address is None:
        return None
    pod = _table(endpoint.get("targetRef"))
    node, name = _text(endpoint.get("nodeName")), _text(pod.get("name"))
    identity = _text(pod.get("uid")) or name or node or address
    return PodAddress(identity, node or name or address, address, port, node, _text(endpoint.get("zone")))


def _first_address(addresses: object) -> str | None:
    """Return the first address; all of an endpoint's addresses lead to the same pod."""
    for each in cast("list[object]", addresses) if isinstance(addresses, list) else []:
        try:
            return str(ip_address(str(each)))
        except ValueError:
            continue
    return None


def _port_of(item: Mapping[str, Any]) -> int | None:
    ports = [each for each in _tables(item.get("ports")) if each.get("protocol", "TCP") == "TCP"]
    named = [each for each in ports if each.get("name") == PORT_NAME]
    chosen = named or ports
    number = chosen[0].get("port") if len(chosen) == 1 else None
    return number if isinstance(number, int) and not isinstance(number, bool) and 0 < number < 65536 else None


def peers_of(endpoints: Iterable[PodAddress], urls: MemberUrls, zones: Mapping[str, str]) -> list[Peer]:
    """Return a peer for each pod, with a URL for each of its addresses, IPv4 before IPv6.

    Args:
        endpoints: The endpoints of all slices.
        urls: What the URLs have in common.
        zones: The zones of nodes by name. They come before those of the slices.
    """
    pods: dict[str, list[PodAddress]] = {}
    for each in sorted(endpoints, key=lambda each: (each.pod, ":" in each.address, each.address)):
        pods.setdefault(each.pod, []).append(each)
    peers: dict[tuple[str, tuple[str, ...]], Peer] = {}
    for pod in pods.values():
        first = pod[0]
        zone = zones.get(first.node or "", first.zone)
        labels = {key: value for key, value in (("zone", zone), ("node", first.node)) if value}
        addresses = tuple(dict.fromkeys(urls.url(each.address, each.port) for each in pod))
        # Two pods that share the node's address, an old one and its successor, are one peer.
        peers.setdefault((first.name, addresses), Peer(first.name, addresses, urls.tls_name, labels, urls.dialled))
    return sorted(peers.values(), key=lambda peer: (peer.id, peer.urls))[:MAX_MEMBERS]


def label_of(item: Mapping[str, Any], name: str) -> str | None:
    """Return the value of a label of an object; None if there is none, or if it is empty."""
    return _text(_table(_table(item.get("metadata")).get("labels")).get(name))


def _tables(value: object) -> Iterator[Mapping[str, Any]]:
    for each in cast("list[object]", value) if isinstance(value, list) else []:
        yield _table(each)


def _table(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
