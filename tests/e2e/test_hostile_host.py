"""One hostile host does everything that it can, without the cluster's key and with it. Honest pulls go on."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.hostile import INSIDERS, TRAP_PORT, Job
from tests.lab.lab import make_network
from tests.lab.network import Node
from tests.lab.peili_process import PeiliProcess
from tests.lab.processes import Process, wait_for

from peili.mirror import Descriptor, Digest
from peili.mirror.peer_api.directory import HOLDERS_PATH
from peili.mirror.testing import make_layout
from peili.mirror.tls.key_file import create_key_file

MAX_ALERT = 64
"""Bytes of the TLS record that says why a handshake has failed. A response is longer."""
TRAP = f"""
import socket
with socket.create_server(("127.0.0.1", {TRAP_PORT})) as listener:
    print("listening", flush=True)
    while True:
        connection, address = listener.accept()
        print("connected", address, flush=True)
        connection.close()
"""


class Scene:
    """The honest hosts `one` and `two`, of which `two` has an image, and a hostile host in the same network."""

    def __init__(self, nodes: list[Node], directory: Path) -> None:
        hostile, one, two = nodes
        self._key = directory / "key"
        create_key_file(self._key)
        self.image = make_layout(directory / "image", layers=[200_000] * 4)
        self._empty = make_layout(directory / "empty", layers=[10])
        self.one, self.two = PeiliProcess(one, "one", directory / "one"), PeiliProcess(two, "two", directory / "two")
        files = [str(self.image.blob_path(each.digest)) for each in self.image.layers]
        job = Job(hostile.address, two.address, "two", [one.address], str(self._key), files)
        command = [sys.executable, "-m", "tests.e2e.hostile", job.as_argument()]
        self.trap = Process(one.command([sys.executable, "-c", TRAP]), directory / "trap.log")
        self.hostile = Process(hostile.command(command), directory / "hostile.log")

    def start(self) -> None:
        """Start the honest hosts after the hostile one."""
        wait_for(lambda: "listening" in self.trap.output(), "the program on loopback listens")
        wait_for(lambda: self.did("announced"), "the hostile host has announced itself")
        for host, layout in ((self.one, self._empty), (self.two, self.image)):
            host.start(
                {
                    "peer": {"shared_key_file": str(self._key), "listen": "[::]:5051"},
                    "store": {"kind": "oci-layout", "path": str(layout.path)},
                    "router": {"kind": "mdns"},
                }
            )

    def stop(self) -> None:
        for process in (self.hostile, self.trap, self.one, self.two):
            process.stop()

    def did(self, what: str) -> list[Any]:
        """Return the values that the hostile host has reported with `what`."""
        complete = self.hostile.output().rpartition("\n")[0]  # it may be writing a line
        lines = [line for line in complete.splitlines() if line.startswith("[")]
        return [value for event, value in map(json.loads, lines) if event == what]

    def repeated(self) -> dict[str, set[str]]:
        """Return the statuses with which `two` answered repeated requests, by path.

        Not those of the question who has a key. Every host with the cluster's key may ask it, so nobody gains from
        another host's question.
        """
        statuses: dict[str, set[str]] = {}
        for path, line in self.did("repeated a request"):
            if path != HOLDERS_PATH:
                statuses.setdefault(path, set()).add(line.split()[1])
        return statuses

    def pull(self, layer: Descriptor) -> bool:
        """Request a layer from the local door of `one`, which has no content. Return whether it was sent whole."""
        try:
            answer = self.one.request("GET", f"/v2/registry.example/demo/blobs/{layer.digest}")
        except (OSError, http.client.HTTPException):  # cut off; a runtime asks again
            return False
        if answer.status != 200:
            return False
        assert Digest.of(answer.body) == layer.digest, "wrong bytes were delivered"
        return True

    def pull_all(self) -> None:
        """Pull each layer of the image, as often as it takes."""
        for layer in self.image.layers:
            wait_for(lambda layer=layer: self.pull(layer), "one pulls from two")  # type: ignore[misc]  # bound early

    def peers(self) -> dict[str, Any]:
        """Return what `one` says about the peers that it knows, by their ids."""
        status = json.loads(self.one.request("GET", "/status").body)
        return {each["id"]: each for each in (*status["peers"], *status["unreachable"])}


@pytest.fixture
def scene(tmp_path: Path) -> Generator[Scene]:
    with make_network() as network:
        if not network.privileged:
            pytest.skip("network namespaces can't be created here")
        scene = Scene([network.add_node(name) for name in ("hostile", "one", "two")], tmp_path)
        try:
            scene.start()
            yield scene
        finally:
            scene.stop()


def test_honest_pulls_go_on_whatever_a_hostile_host_does(scene: Scene) -> None:
    def has_tried_everything() -> bool:
        scene.pull_all()
        has_repeated = bool(scene.did("repeated a connection")) and bool(scene.repeated())
        return has_repeated and bool(scene.did("was told")) and set(scene.did("was asked")) == set(INSIDERS)

    wait_for(has_tried_everything, "the hostile host has tried everything")
    scene.pull_all()

    known = scene.peers()
    assert any(f"https://{scene.two.peer}" in each["urls"] for each in known.values()), "two is not hidden"
    assert not [url for each in known.values() for url in each["urls"] if f":{TRAP_PORT}" in url]
    assert "connected" not in scene.trap.output(), "no address or redirect leads to loopback"
    assert "HTTP" not in str(scene.did("was told")), "without a key it is told no more than a TLS handshake"
    assert max(scene.did("repeated a connection")) <= MAX_ALERT, "a repeated connection gets no response"
    repeated = scene.repeated()
    assert repeated == {path: {"403"} for path in repeated}, "nobody speaks for another host"
