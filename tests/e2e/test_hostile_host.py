"""A hostile host in the same network announces itself by mDNS, as another host and with addresses of its victims."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.lab import make_network
from tests.lab.network import Node
from tests.lab.peili_process import PeiliProcess, Sections
from tests.lab.processes import Process, wait_for

from peili.mirror.testing import make_layout
from peili.mirror.tls.key_file import create_key_file

HOSTILE = """
import asyncio, ipaddress, sys
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

own, victim, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
SERVICE = "_peili._tcp.local."

async def serve(reader, writer):
    data = await reader.read(100)
    print("received", data[:40], flush=True)
    writer.write(b"HTTP/1.1 200 OK\\r\\nPeili-Id: two\\r\\nContent-Length: 9999999\\r\\n\\r\\nwrong")
    await asyncio.sleep(3600)

def service(name, identity, address, port, scheme="https"):
    return AsyncServiceInfo(SERVICE, f"{name}.{SERVICE}", port=port, properties={"id": identity, "scheme": scheme},
                            server=f"{name}.local.", parsed_addresses=[address])

async def main():
    await asyncio.start_server(serve, own, 5051)
    zeroconf = AsyncZeroconf(interfaces=[own])
    services = [service("as-two", victim, own, 5051), service("plain", "plain", own, 5051, "http")]
    for number, address in enumerate(("127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.251")):
        services.append(service(f"at-{number}", f"at-{number}", address, 7777))
    services += [service(f"flood-{number}", f"flood-{number}", "10.77.0.250", 1) for number in range(count)]
    announcing = (zeroconf.async_register_service(each, cooperating_responders=True) for each in services)
    await asyncio.gather(*await asyncio.gather(*announcing))
    print("announced", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""
LISTENER = """
import socket, sys
with socket.create_server(("127.0.0.1", 7777)) as listener:
    print("listening", flush=True)
    while True:
        connection, address = listener.accept()
        print("connected", address, flush=True)
        connection.close()
"""


def peers_of(host: PeiliProcess) -> dict[str, Any]:
    status = json.loads(host.request("GET", "/status").body)
    return {each["id"]: each for each in (*status["peers"], *status["unreachable"])}


def run_script(node: Node, log: Path, script: str, *arguments: str) -> Process:
    return Process(node.command([sys.executable, "-c", script, *arguments]), log)


@pytest.fixture
def nodes(tmp_path: Path) -> Generator[list[Node]]:
    with make_network() as network:
        if not network.privileged:
            pytest.skip("network namespaces can't be created here")
        yield [network.add_node(name) for name in ("hostile", "one", "two")]


def test_an_announcement_hides_nothing_and_leads_nowhere(nodes: list[Node], tmp_path: Path) -> None:
    hostile, *honest = nodes
    image = make_layout(tmp_path / "image", layers=[300_000])
    empty = make_layout(tmp_path / "empty", layers=[10])
    create_key_file(tmp_path / "key")
    hosts = [PeiliProcess(node, name, tmp_path / name) for node, name in zip(honest, ("one", "two"), strict=True)]
    one, two = hosts
    processes: list[Process] = []
    try:
        processes.append(run_script(honest[0], tmp_path / "listener.log", LISTENER))
        processes.append(
            run_script(hostile, tmp_path / "hostile.log", HOSTILE, hostile.address, "two", "30"),
        )
        wait_for(lambda: "listening" in processes[0].output(), "the program on loopback listens")
        wait_for(lambda: "announced" in processes[1].output(), "the hostile host has announced itself")
        for host, layout in ((one, empty), (two, image)):
            sections: Sections = {
                "peer": {"shared_key_file": str(tmp_path / "key"), "listen": "[::]:5051"},
                "store": {"kind": "oci-layout", "path": str(layout.path)},
                "router": {"kind": "mdns"},
            }
            host.start(sections)
        layer = image.layers[0]
        path = f"/v2/registry.example/demo/blobs/{layer.digest}"
        wait_for(lambda: one.request("GET", path).status == 200, "one pulls from two")
        assert len(one.request("GET", path).body) == layer.size
        known = peers_of(one)
        assert any(f"https://{two.peer}" in each["urls"] for each in known.values())
        urls = {url for each in known.values() for url in each["urls"]}
        assert not [url for url in urls if ":7777" in url], "addresses of no other host"
        assert "connected" not in processes[0].output()
        wait_for(lambda: "received" in processes[1].output(), "the hostile host was connected to")
        assert "HTTP" not in processes[1].output(), "it was told more than a TLS handshake"
    finally:
        for process in processes:
            process.stop()
        for host in hosts:
            host.stop()
