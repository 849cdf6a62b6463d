"""The laboratory of the end-to-end tests: hosts that each run a containerd and a peili, and an upstream registry."""

from __future__ import annotations

import http.client
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tests.containerd_releases import Release
from tests.lab.access import Access, AccessKind
from tests.lab.authentication import Authentication
from tests.lab.containerd import Containerd
from tests.lab.namespaces import NamespaceNetwork, namespaces_work
from tests.lab.network import PEER_PORT, LoopbackNetwork, Network, Node
from tests.lab.peili_process import Launch, PeiliProcess, Sections, launch_fork
from tests.lab.processes import ENVIRONMENT
from tests.lab.run_names import PATTERN, is_stale, new_name
from tests.lab.token_server import TokenServer, User
from tests.lab.upstream import Published, Upstream
from tests.support.directories import short_parent

from peili.mirror.testing.images import make_layout

COMMANDS = ("containerd", "ctr", "docker-registry", "openssl", "setpriv", "skopeo")
"""The commands that the laboratory runs. `tests/prepare.py` installs them."""

RouterKind = Literal["static", "mdns"]

GENEROUS_LIMITS = {
    "lookup_timeout": 10,
    "connect_timeout": 10,
    "first_byte_timeout": 30,
    "stall_timeout": 30,
    "upstream_timeout": 10,
    "start_timeout": 60,
    "stop_timeout": 60,
}
"""Limits that are long enough for a busy machine. With the defaults, peili might give up a peer, a registry or a
plug-in that is only slow, and the pull would go upstream.
"""


@dataclass(frozen=True)
class Host:
    """One machine of the laboratory: a node with a containerd and a peili."""

    name: str
    node: Node
    containerd: Containerd
    peili: PeiliProcess
    access: Access

    def can_find(self, path: str) -> bool:
        """Return whether the local door of this host answers `path` with 200, from its store or from a peer."""
        return self.peili.request("HEAD", path).status == 200

    def can_fetch_from(self, other: Host, path: str) -> bool:
        """Return whether the peer door of `other` answers `path` with 200 to this host."""
        with closing(self.connect_to(other)) as connection:
            connection.request("HEAD", path)
            return connection.getresponse().status == 200

    def connect_to(self, other: Host) -> http.client.HTTPConnection:
        """Return a new connection to the peer door of `other`, with the key or certificate of this host.

        Raises:
            OSError: The connection failed.
        """
        address, port = other.node.address, other.node.port(PEER_PORT)
        connection = http.client.HTTPConnection(address, port)
        tls, plain = self.access.client_context(self.name, self.node.address), self.node.connect(address, port)
        connection.sock = plain if tls is None else tls.wrap_socket(plain)
        return connection


class Lab:
    """A registry and some hosts. Their containerds run; `start_peili` starts their peilis.

    All processes and files end with the context manager. pytest shows the logs of a test that fails (e2e/conftest.py).

    Args:
        names: The names of the hosts.
        release: The containerd release of all hosts. The default is `releases.release()`.
        with_cri: See `Containerd`.
        settings: See `Containerd`.
        snapshotter: See `Containerd`.
        parent: The directory in which the laboratory's own directory is created. Its path has to be short.
        access: Who may use the peer doors. The default is everyone, or what PEILI_TEST_TLS says.
        launch: How the peilis are started.

    Attributes:
        directory: The directory of all files. It has a short path.
        access: See above.
        network: The network of the hosts and the registry.
        upstream: The registry, which runs.
        hosts: The hosts by name.
    """

    def __init__(
        self,
        *names: str,
        release: Release | None = None,
        with_cri: bool = False,
        settings: str = "",
        snapshotter: str = "native",
        parent: Path | None = None,
        access: AccessKind | None = None,
        launch: Launch = launch_fork,
    ) -> None:
        self._release = release
        self._launch = launch
        self._settings = settings
        self._snapshotter = snapshotter
        with ExitStack() as stack:
            self.directory = _create_directory(parent or short_parent())
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.access = Access(self.directory / "access", access)
            self.network = stack.enter_context(make_network())
            self.upstream = Upstream(self.network.add_node("upstream"), self.directory / "upstream")
            stack.callback(self.upstream.stop)
            self.upstream.start()
            self.hosts = {name: self._host(name, stack, with_cri=with_cri) for name in names}
            stack.callback(self.stop_peili)
            for host in self.hosts.values():
                host.containerd.wait_ready()
            self._stack = stack.pop_all()
        self._images = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add_token_server(self, users: Mapping[str, User], *, public: Sequence[str] = ()) -> TokenServer:
        """Start a token server on a node of its own. Its users and public repositories are those of `TokenServer`."""
        server = TokenServer(self.network.add_node("tokens"), self.directory / "tokens", users=users, public=public)
        self._stack.callback(server.stop)
        server.start()
        return server

    def add_upstream(self, name: str, authentication: Authentication | None = None) -> Upstream:
        """Start a further registry on a node called `name`, with a mirror on each host."""
        upstream = Upstream(self.network.add_node(name), self.directory / name, authentication=authentication)
        self._stack.callback(upstream.stop)
        upstream.start()
        for host in self.hosts.values():
            host.containerd.set_mirrors(upstream.name, f"http://{host.peili.local}")
        return upstream

    def publish(
        self,
        repository: str,
        layers: Sequence[int],
        *,
        platforms: Sequence[str] = (),
        to: Upstream | None = None,
    ) -> Published:
        """Create an image and push it to the upstream registry, which must run.

        Args:
            repository: The repository in the registry.
            layers: The size of each layer in bytes. The content is random.
            platforms: The platforms of the image. The default is the platform of this machine. With several, the image
                has an index.
            to: The registry. The default is the one that each laboratory has.
        """
        self._images += 1
        layout = self.directory / f"image-{self._images}"
        image = make_layout(layout, layers=layers, tags=["v1"], platforms=platforms)
        return (to or self.upstream).push(image, repository)

    def start_peili(
        self,
        *names: str,
        router: RouterKind | Mapping[str, Any] = "static",
        known: Sequence[str] = (),
        **sections: Mapping[str, Any],
    ) -> None:
        """Start peili on some hosts and wait until they are ready.

        Args:
            names: The hosts. The default is all of them.
            router: How they find each other, or the section of the configuration. With `static`, all hosts of the
                laboratory are peers.
            known: With `static`, the names of the hosts that are peers, if not all are.
            sections: Sections of the configuration that replace the default ones. By default, the store is the host's
                containerd.
        """
        hosts = [self.hosts[name] for name in names or self.hosts]
        for host in hosts:
            host.peili.launch({**self._sections(host, router, known), **sections})
        for host in hosts:
            host.peili.wait_ready()

    def stop_peili(self) -> None:
        """Stop peili on all hosts, at the same time."""
        for host in self.hosts.values():
            host.peili.terminate()
        for host in self.hosts.values():
            host.peili.stop()

    def logs(self) -> str:
        """Return what peili has logged on each host."""
        return "\n".join(f"--- peili of {host.name}\n{host.peili.log()}" for host in self.hosts.values())

    def _host(self, name: str, stack: ExitStack, *, with_cri: bool) -> Host:
        node, directory = self.network.add_node(name), self.directory / name
        containerd = Containerd(
            node,
            directory / "containerd",
            unpack=self.network.privileged,
            snapshotter=self._snapshotter,
            release=self._release,
            with_cri=with_cri,
            settings=self._settings,
        )
        peili = PeiliProcess(node, name, directory / "peili", launch=self._launch)
        host = Host(name, node, containerd, peili, self.access)
        stack.callback(containerd.stop)
        containerd.launch()
        containerd.set_mirrors(self.upstream.name, f"http://{host.peili.local}")
        return host

    def _sections(self, host: Host, router: RouterKind | Mapping[str, Any], known: Sequence[str]) -> Sections:
        containerd = host.containerd
        store = {"kind": "containerd", "address": str(containerd.socket), "namespaces": [containerd.namespace]}
        peer = self.access.section(host.name, host.node.address)
        return {
            "store": store,
            "limits": GENEROUS_LIMITS,
            "peer": peer,
            "router": self._router(host, router, known) if isinstance(router, str) else router,
        }

    def _router(self, host: Host, kind: RouterKind, known: Sequence[str]) -> Mapping[str, Any]:
        if kind == "mdns":
            return {"kind": "mdns", "interfaces": [host.node.interface]}
        peers = [f"{self.access.scheme}://{self.hosts[name].peili.peer}" for name in known or self.hosts]
        return {"kind": "static", "peers": peers}


def _create_directory(parent: Path) -> Path:
    """Create a directory with a path that is short enough for unix sockets, and remove those of ended runs."""
    for each in parent.glob(PATTERN):
        if is_stale(each.name):
            shutil.rmtree(each, ignore_errors=True)
    directory = parent / new_name()
    directory.mkdir(mode=0o700)
    return directory


def make_network() -> Network:
    """Return a network of namespaces if this process may create them, else one on loopback.

    PEILI_LAB=loopback selects loopback.
    """
    return NamespaceNetwork() if _can_use_namespaces() else LoopbackNetwork()


@cache
def _can_use_namespaces() -> bool:
    return os.environ.get("PEILI_LAB") != "loopback" and os.geteuid() == 0 and namespaces_work()


def missing_commands() -> list[str]:
    """Return the names in `COMMANDS` that are not installed."""
    return [command for command in COMMANDS if shutil.which(command, path=ENVIRONMENT["PATH"]) is None]
