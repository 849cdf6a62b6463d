"""The laboratory: some hosts, each with a containerd and a peili of its own, and a registry upstream of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tests.containerds import Release
from tests.lab.agent import Agent, Sections
from tests.lab.containerd import Containerd
from tests.lab.names import PATTERN, is_stale, new_name
from tests.lab.namespaces import Namespaces, namespaces_work
from tests.lab.network import PEER_PORT, Loopback, Network, Place
from tests.lab.processes import ENVIRONMENT
from tests.lab.upstream import Published, Upstream
from tests.support.places import short_parent

from peili.mirror.testing.images import make_layout

COMMANDS = ("containerd", "ctr", "docker-registry", "openssl", "setpriv", "skopeo")
"""What has to be installed; `tests/prepare.py` sees to it."""

RouterKind = Literal["static", "mdns"]

PATIENT = {"lookup_timeout": 10, "connect_timeout": 10, "first_byte_timeout": 20}
"""Limits with which a peer that is only slow, as all are on a busy machine, is not taken for one that has nothing."""


@dataclass(frozen=True)
class Host:
    """One machine of the laboratory."""

    name: str
    place: Place
    containerd: Containerd
    peili: Agent

    def finds(self, path: str) -> bool:
        """Whether this host's local door has `path`, from here or from a peer."""
        return self.peili.ask("HEAD", path).status == 200

    def sees(self, other: Host, path: str) -> bool:
        """Whether `other` serves `path` to this host, at its peer door."""
        return self.place.ask("HEAD", other.place.address, other.place.port(PEER_PORT), path).status == 200


class Lab:
    """A registry and one host for each of `names`, with containerd running and peili not yet. All hosts have the
    containerd `release`; the installed one if nothing else is said.

    Everything lives below one directory and ends with the laboratory; pytest shows the logs of a test that fails.
    `for_pods` is `Containerd`'s.
    """

    def __init__(self, *names: str, release: Release | None = None, for_pods: bool = False, settings: str = "") -> None:
        self._release = release
        self._settings = settings
        with ExitStack() as stack:
            self.directory = _make_directory()
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.network = stack.enter_context(make_network())
            self.upstream = Upstream(self.network.place("upstream"), self.directory / "upstream")
            stack.callback(self.upstream.stop)
            self.upstream.start()
            self.hosts = {name: self._host(name, stack, for_pods=for_pods) for name in names}
            self._stack = stack.pop_all()
        self._images = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def publish(self, repository: str, layers: Sequence[int], *, platforms: Sequence[str] = ()) -> Published:
        """Push a new image of random layers (sizes in bytes) upstream, which has to run."""
        self._images += 1
        layout = self.directory / f"image-{self._images}"
        return self.upstream.push(make_layout(layout, layers=layers, tags=["v1"], platforms=platforms), repository)

    def start_peili(self, *names: str, router: RouterKind = "static", **sections: Mapping[str, Any]) -> None:
        """Start peili on these hosts, or on all, each with its containerd as store, and every host a peer."""
        for name in names or self.hosts:
            host = self.hosts[name]
            host.peili.start({**self._sections(host, router), **sections})

    def stop_peili(self) -> None:
        """Stop peili wherever it runs."""
        for host in self.hosts.values():
            host.peili.stop()

    def logs(self) -> str:
        """What the hosts' peilis have logged, for the report of a test that failed."""
        return "\n".join(f"--- peili of {host.name}\n{host.peili.log()}" for host in self.hosts.values())

    def _host(self, name: str, stack: ExitStack, *, for_pods: bool) -> Host:
        place, directory = self.network.place(name), self.directory / name
        containerd = Containerd(
            place,
            directory / "containerd",
            unpack=self.network.privileged,
            release=self._release,
            for_pods=for_pods,
            settings=self._settings,
        )
        host = Host(name, place, containerd, Agent(place, name, directory / "peili"))
        stack.callback(containerd.stop)
        stack.callback(host.peili.stop)
        containerd.start()
        containerd.mirror(self.upstream.name, f"http://{host.peili.local}")
        return host

    def _sections(self, host: Host, router: RouterKind) -> Sections:
        containerd = host.containerd
        store = {"kind": "containerd", "address": str(containerd.socket), "namespaces": [containerd.namespace]}
        shared: Sections = {"store": store, "limits": PATIENT}
        if router == "mdns":
            return {**shared, "router": {"kind": "mdns", "interfaces": [host.place.interface]}}
        peers = [f"http://{each.peili.peer}" for each in self.hosts.values()]
        return {**shared, "router": {"kind": "static", "peers": peers}}


def _make_directory() -> Path:
    """A new one, not pytest's: the path of a unix socket has to be short. Those of runs that are no more go."""
    parent = short_parent()
    for each in parent.glob(PATTERN):
        if is_stale(each.name):
            shutil.rmtree(each, ignore_errors=True)
    directory = parent / new_name()
    directory.mkdir(mode=0o700)
    return directory


def make_network() -> Network:
    """Namespaces where they can be made, else loopback; PEILI_LAB=loopback tries out the latter as root."""
    return Namespaces() if _isolated() else Loopback()


@cache
def _isolated() -> bool:
    return os.environ.get("PEILI_LAB") != "loopback" and os.geteuid() == 0 and namespaces_work()


def missing_commands() -> list[str]:
    """Those of `COMMANDS` that can't be found."""
    return [command for command in COMMANDS if shutil.which(command, path=ENVIRONMENT["PATH"]) is None]
