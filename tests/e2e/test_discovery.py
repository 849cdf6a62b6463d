"""Hosts that find each other by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.lab.access import Access, AccessKind
from tests.lab.lab import GENEROUS_LIMITS, make_network
from tests.lab.peili_process import PeiliProcess, Sections
from tests.lab.processes import run, wait_for


def known_peers(host: PeiliProcess) -> list[Any]:
    """Return the peers that the ops door shows."""
    peers: list[Any] = json.loads(host.request("GET", "/status").body)["peers"]
    return peers


@pytest.mark.parametrize(("kind", "options"), [("open", {"interfaces": ["eth0"]}), ("certificates", {})])
def test_hosts_without_a_default_route_find_each_other_by_mdns(
    kind: AccessKind, options: dict[str, list[str]], tmp_path: Path
) -> None:
    """A door on all addresses, with no route that would say which of them other hosts use.

    Each host has an address that others can't use, and is not announced there: it is on another interface than the used
    one, or its certificate does not show it. The certificate does not show loopback, either.
    """
    access = Access(tmp_path / "access", kind)
    with make_network() as network:
        if not network.privileged:
            pytest.skip("network namespaces can't be created here")
        nodes = {name: network.add_node(name) for name in ("one", "two")}
        hosts = [PeiliProcess(node, name, tmp_path / name) for name, node in nodes.items()]
        for number, node in enumerate(nodes.values()):
            run(node.command(["ip", "link", "add", "unused", "type", "veth", "peer", "name", "other-end"]))
            run(node.command(["ip", "address", "add", f"10.88.{number}.1/24", "dev", "unused"]))
            for device in ("unused", "other-end"):
                run(node.command(["ip", "link", "set", device, "up"]))
        try:
            for each in hosts:
                door = access.section(each.identity, nodes[each.identity].address)
                sections: Sections = {
                    "peer": {**door, "listen": "[::]:5051"},
                    "store": {"kind": "memory"},
                    "router": {"kind": "mdns", **options},
                    "limits": GENEROUS_LIMITS,
                }
                each.start(sections)
            for here, there in zip(hosts, reversed(hosts), strict=True):
                [peer] = wait_for(lambda here=here: known_peers(here), "it finds the other host")  # type: ignore[misc]  # bound early
                assert peer["id"] == there.identity
                assert peer["urls"] == [f"{access.scheme}://{there.peer}"]
        finally:
            for each in hosts:
                each.stop()
