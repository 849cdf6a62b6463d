"""Hosts that find each other by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.lab.lab import make_network
from tests.lab.peili_process import PeiliProcess, Sections
from tests.lab.processes import wait_for


def known_peers(host: PeiliProcess) -> list[Any]:
    """Return the peers that the ops door shows."""
    peers: list[Any] = json.loads(host.request("GET", "/status").body)["peers"]
    return peers


def test_hosts_without_a_default_route_find_each_other_by_mdns(tmp_path: Path) -> None:
    """A door on all addresses, with no route that would say which of them other hosts use."""
    with make_network() as network:
        if not network.privileged:
            pytest.skip("network namespaces can't be created here")
        hosts = [PeiliProcess(network.add_node(name), name, tmp_path / name) for name in ("one", "two")]
        sections: Sections = {
            "peer": {"insecure": True, "listen": "[::]:5051"},
            "store": {"kind": "memory"},
            "router": {"kind": "mdns"},
        }
        try:
            for each in hosts:
                each.start(sections)
            for here, there in zip(hosts, reversed(hosts), strict=True):
                wait_for(lambda here=here: known_peers(here), "it finds the other host")  # type: ignore[misc]  # bound early
                [peer] = known_peers(here)
                assert peer["id"] == there.identity
                assert f"http://{there.peer}" in peer["urls"]
                assert not [url for url in peer["urls"] if "127.0.0.1" in url or "[::1]" in url]
        finally:
            for each in hosts:
                each.stop()
