"""One cold start in which something goes wrong: eight hosts pull an image that only upstream has.

A drill starts the pulls, and has helpers for what goes wrong. bench/faults.py has the faults.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.lab.authentication import Htpasswd
from tests.lab.lab import Host
from tests.lab.namespaces import NamespaceNode
from tests.lab.processes import Process
from tests.lab.upstream import Upstream

from bench.cold_start import ColdStart
from bench.setting import MIB
from peili.mirror import Digest
from peili.mirror.membership.directory.homes import HomeSet, choose_homes, slot_of

_NOTICED = 1.0
"""Seconds in which the registry notices that nobody reads a response any more."""
_RECEIVE_BUFFER = 6 * MIB
"""The most bytes that a connection of a host keeps for a program that does not read them.

Linux has allowed this for long; newer kernels allow 32 MiB. Upstream has sent what a stopped runtime has there.
"""
_SECONDS = 120
"""How long the pulls of a drill may take."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a drill ended.

    Attributes:
        copies: The bytes that upstream sent, as copies of the image.
        last: The seconds until the last surviving host had the whole image.
        without: The surviving hosts that do not have the image, with the reason.
        failed: The pulls of surviving hosts that failed, in their order, each with the host and the client's last line.
    """

    copies: float
    last: float
    without: dict[str, str]
    failed: Sequence[tuple[str, str]] = ()


class Drill:
    """The hosts of a laboratory, which pull one image.

    Args:
        scene: The laboratory.
        layers: The sizes of the layers of the image in bytes.
        stack: Closed at the end of the drill.

    Attributes:
        first: The host whose pull starts first, so that it is sent upstream.
        others: The other hosts.
        pulls: The pulls.
        tries: How often a host pulls, as the kubelet does, until it has the image.
    """

    def __init__(self, scene: ColdStart, layers: Sequence[int], stack: ExitStack) -> None:
        self.scene = scene
        self.first, *self.others = scene.lab.hosts.values()
        self.pulls = scene.prepare(layers)
        self.tries = 1
        self._stack = stack
        self._exempt: set[str] = set()
        self._lost: list[Process] = []
        for host in self.hosts:
            assert isinstance(host.node, NamespaceNode)
            host.node.limit_receive_buffers(_RECEIVE_BUFFER)

    @property
    def hosts(self) -> Sequence[Host]:
        """All hosts."""
        return [self.first, *self.others]

    def start(self) -> None:
        """Start all pulls: the first host's, and the others' when it has received something."""
        self.pulls.start([self.first])
        self.wait_until_received(self.first, 0)
        self.pulls.start(self.others)

    def wait_until_received(self, host: Host, share: float) -> None:
        """Wait until `host` has more than this share of the image."""
        self.pulls.wait_until(partial(self._has_more, host, share), timeout=_SECONDS)

    def wait(self, seconds: float) -> None:
        """Follow the pulls for some seconds."""
        until = self.pulls.elapsed + seconds
        self.pulls.wait_until(lambda: self.pulls.elapsed >= until, timeout=2 * seconds + 60)

    def lose(self, host: Host) -> None:
        """Do not expect that `host` gets the image."""
        self._exempt.add(host.name)
        if (pull := self.pulls.running.get(host.name)) is not None:
            self._lost.append(pull)
        self.pulls.forget(host.name)

    def kill(self, host: Host) -> None:
        """Kill all that runs on `host`."""
        for process in (self.pulls.running[host.name], host.peili.process, host.containerd.process):
            process.kill()
        self.lose(host)

    def home(self, digest: Digest) -> Host:
        """Return which host is the first home of a blob."""
        homes = HomeSet(choose_homes(host.peili.identity for host in self.hosts)).homes_of(slot_of(digest))
        return self.scene.lab.hosts[homes[0]]

    def second_upstream(self, rate: str, *, closed: bool = False) -> Upstream:
        """Run a second registry with the same content on a node of its own. Its bytes count, too."""
        lab = self.scene.lab
        node = lab.network.add_node("second")
        assert isinstance(node, NamespaceNode)
        node.limit_link(rate)
        authentication = Htpasswd(lab.directory) if closed else None
        second = Upstream(node, lab.directory / "second", storage=lab.upstream.storage, authentication=authentication)
        self._stack.callback(second.stop)
        second.start()
        self.pulls.count(second)
        return second

    def keep_logs(self, folder: Path) -> None:
        """Write what each host has logged to `folder`, which is created: its peili, containerd, and pulls."""
        folder.mkdir(parents=True, exist_ok=True)
        for host in self.hosts:
            logs = {"peili": host.peili.log(), "containerd": host.containerd.log(), "pulls": host.containerd.pull_log()}
            for name, text in logs.items():
                (folder / f"{host.name}.{name}.log").write_text(text)

    def finish(self) -> Outcome:
        """Wait until the surviving hosts have the image, or their last tries have failed."""
        survivors = [host for host in self.hosts if host.name not in self._exempt]
        failed: list[tuple[str, str]] = []
        for number in range(self.tries):
            if number:
                self.pulls.start([host for host in survivors if host.name in self.pulls.failed])
            self.pulls.wait(_SECONDS)
            failed += [(host.name, _last_line(self.pulls.failed.get(host.name, ""))) for host in survivors]
        without = {host.name: reason for host in survivors if (reason := self._problem(host))}
        last = max((self.pulls.complete.get(host.name, self.pulls.elapsed) for host in survivors), default=0.0)
        for pull in self._lost:  # so that the registry logs what it has sent to them
            pull.kill()
        self.wait(_NOTICED)
        return Outcome(self.pulls.copies(), last, without, [each for each in failed if each[1]])

    def _has_more(self, host: Host, share: float) -> bool:
        return self.pulls.received(host) > share * self.pulls.size

    def _problem(self, host: Host) -> str:
        """Return why `host` does not have the image; empty if it has all of it."""
        if host.name in self.pulls.failed:
            return self.pulls.failed[host.name]
        for blob in self.pulls.blobs:
            path = host.containerd.blob_path(blob.digest)
            if not path.exists():
                return f"{blob.digest} is missing"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != blob.digest.encoded:
                    return f"{blob.digest} is wrong"
        return ""


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
