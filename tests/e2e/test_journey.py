"""The way of a new operator: install, make a key, run three hosts, pull, and look at what happened."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.checks import MIB, assert_has, wait_found
from tests.lab.lab import GENEROUS_LIMITS, Host, Lab
from tests.lab.network import LOCAL_PORT, PEER_PORT
from tests.lab.processes import CommandFailed, Process, run, wait_for
from tests.support.fresh_environment import create_environment
from tests.support.name_server import HAS_NSD, name_server_configuration

DNS_PORT = 5353


class Journey:
    """Three hosts on which the installed `peili` runs, each with its own router.

    The host `a` finds the others by DNS, from a server in a namespace of its own; `b` by a file; `c` by a list.
    """

    def __init__(self, lab: Lab, peili: Path) -> None:
        self.lab = lab
        self._peili = peili
        self._directory = lab.directory
        self._key = lab.directory / "key"
        self._processes: list[Process] = []
        run([str(peili), "keys", "new", str(self._key)])

    def start(self) -> None:
        dns = self._start_dns()
        urls = [f"https://{host.node.address}:{PEER_PORT}" for host in self.lab.hosts.values()]
        members = self._directory / "members"
        members.write_text("# all hosts\n" + "\n".join(urls) + "\n")
        routers = {
            "a": f'kind = "dns"\nname = "peili.test"\nport = {PEER_PORT}\nservers = ["{dns}"]',
            "b": f'kind = "file"\npath = "{members}"',
            "c": f'kind = "static"\npeers = {json.dumps(urls)}',
        }
        for name, host in self.lab.hosts.items():
            self.configuration(name).write_text(
                f'[peer]\nlisten = "[::]:{PEER_PORT}"\nadvertise = "https://{host.node.address}:{PEER_PORT}"\n'
                f'shared_key_file = "{self._key}"\n[mirror]\nidentity = "{name}"\n'
                f'[store]\nkind = "containerd"\naddress = "{host.containerd.socket}"\n[router]\n{routers[name]}\n'
                "[limits]\n" + "".join(f"{key} = {value}\n" for key, value in GENEROUS_LIMITS.items())
            )
            assert "valid" in self.run(host, "serve", "--check")
            command = host.node.command([str(self._peili), "serve", "--config", str(self.configuration(name))])
            self._processes.append(Process(command, self._directory / f"{name}.log"))
        for host in self.lab.hosts.values():
            wait_for(lambda host=host: self._sees_others(host), f"{host.name} finds the others")  # type: ignore[misc]  # bound early

    def stop(self) -> None:
        for each in self._processes:
            each.stop()

    def configuration(self, name: str) -> Path:
        return self._directory / f"{name}.toml"

    def run(self, host: Host, *arguments: str) -> str:
        """Run the installed `peili` on a host with its configuration. Raises CommandFailed."""
        command = [str(self._peili), *arguments, "--config", str(self.configuration(host.name))]
        return run(host.node.command(command)).decode()

    def wait_until_well(self, host: Host) -> None:
        """Wait until `peili doctor` finds no failure, and all peers. It gives each answer a few seconds."""
        output = ""

        def is_well() -> bool:
            nonlocal output
            try:
                output = self.run(host, "doctor")
            except CommandFailed as error:
                output = str(error)
                return False
            words = {line.split()[0] for line in output.splitlines() if line.strip()}
            return "fail" not in words and "2 known, all answer" in output

        try:
            wait_for(is_well, f"{host.name} is well, says peili doctor", pause=0.5)
        except AssertionError as error:
            error.add_note(output)
            raise

    def images(self, host: Host) -> dict[str, Any]:
        """Return the rows of the page of images, by the names of the images."""
        document = json.loads(host.node.request("GET", "127.0.0.1", LOCAL_PORT, "/images").body)
        return {each["image"]: each for each in document["images"]}

    def _sees_others(self, host: Host) -> bool:
        """Return whether `host` is up and knows the others. A `peili status` would take a second of CPU time."""
        try:
            status = json.loads(host.node.request("GET", "127.0.0.1", LOCAL_PORT, "/status").body)
        except OSError:
            return False
        others = {each.node.address for each in self.lab.hosts.values() if each is not host}
        return {address for address in others if address in str([peer["urls"] for peer in status["peers"]])} == others

    def _start_dns(self) -> str:
        """Run Debian's DNS server in a namespace of its own. Returns its address and port."""
        node = self.lab.network.add_node("dns")
        records = [f"peili A {host.node.address}" for host in self.lab.hosts.values()]
        configuration = name_server_configuration(self._directory, node.address, DNS_PORT, records)
        command = ["nsd", "-d", "-c", str(configuration)]
        self._processes.append(Process(node.command(command), self._directory / "nsd.log"))
        return f"{node.address}:{DNS_PORT}"


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Generator[Journey]:
    if not HAS_NSD:
        pytest.skip("not installed: nsd")
    with Lab("a", "b", "c", with_cri=True) as lab:
        if not lab.network.privileged:
            pytest.skip("network namespaces can't be created here")
        journey = Journey(lab, create_environment(tmp_path_factory.mktemp("installed")))
        try:
            journey.start()
            yield journey
        finally:
            journey.stop()


def test_the_first_hour_of_an_operator(journey: Journey) -> None:
    lab = journey.lab
    a, b, c = lab.hosts.values()
    published = lab.publish("library/journey", [2 * MIB, MIB])
    a.containerd.cri_pull(published.by_tag)
    only_a = lab.publish("library/only-a", [1000])
    a.containerd.cri_pull(only_a.by_tag)
    for host in (b, c):
        wait_found(host, published)
        wait_found(host, only_a)
    lab.upstream.stop()  # from here on, only peers have it
    for host in (b, c):
        host.containerd.cri_pull(published.by_digest)
        assert_has(host, published.image)
    layer = published.image.layers[0].digest.encoded[:12]

    def is_found_at_all() -> bool:
        lines = [line for line in journey.run(b, "find", published.by_digest).splitlines() if layer in line]
        return bool(lines) and {"here", "a", "c"} <= set(re.split(r"[ ,]+", lines[0]))

    def saves_all(host: Host) -> bool:
        return re.search(r"saved +100 %", journey.run(host, "status")) is not None

    def shows_images(host: Host) -> bool:
        rows = journey.images(host)
        are_here = {name: each["here"] for name, each in rows.items()}
        return are_here == {published.by_tag: True, only_a.by_tag: False} and rows[only_a.by_tag]["peers"] == ["a"]

    wait_for(is_found_at_all, "every host has the layer, says peili find", pause=0.5)
    for host in (b, c):
        wait_for(lambda host=host: saves_all(host), "the status says that upstream sent nothing", pause=0.5)  # type: ignore[misc]  # bound early
        journey.wait_until_well(host)
        page = host.node.request("GET", "127.0.0.1", LOCAL_PORT, "/")
        assert page.status == 200
        assert b"<html" in page.body.lower()
        wait_for(lambda host=host: shows_images(host), "the page shows both images, and who has them")  # type: ignore[misc]  # bound early
