"""A laboratory of hosts behind limited links, all of which pull an image that only a registry has.

Each host has a containerd, and a peili that its containerd asks first or not at all. The registry has a link of its
own. This module takes one measurement; bench/rows/coldstart.py says which ones.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.containerd_releases import Release
from tests.lab.access import AccessKind
from tests.lab.lab import Host, Lab
from tests.lab.namespaces import NamespaceNode, namespaces_work
from tests.lab.network import Node
from tests.lab.peili_process import launch_program
from tests.lab.processes import wait_for
from tests.lab.pulls import Pulls

from bench.setting import TAR
from bench.usage import cpu_seconds, machine_seconds

_UNLIMITED = "10gbit"
_SECONDS = 60
"""A pull has this much time in addition to three times what the slowest link needs for a copy for each host."""


@dataclass(frozen=True, slots=True)
class Links:
    """The rates of the links in both directions, in Mbit/s."""

    hosts: int
    upstream: int

    def seconds(self, size: int) -> float:
        """Return how long the slowest link needs for `size` bytes."""
        return size * 8 / (min(self.hosts, self.upstream) * 1e6)


@dataclass(frozen=True, slots=True)
class Figures:
    """One measurement. Times are multiples of F/B, which is what the slowest link needs for the image.

    Attributes:
        ideal: F/B in seconds.
        copies: The bytes that upstream sent, as copies of the image.
        median: When the median host had every blob.
        last: When the last host had every blob.
        returned: When the last pull returned.
        busy: The part of the processors' time that was used, between 0 and 1.
        others: The part of it that processes outside of the laboratory used.
    """

    ideal: float
    copies: float
    median: float
    last: float
    returned: float
    busy: float
    others: float

    def __str__(self) -> str:
        times = f"median {self.median:.2f}, last {self.last:.2f}, returned {self.returned:.2f} x {self.ideal:.1f} s"
        return f"{self.copies:.2f} copies; {times}; processors {self.busy:.0%} used, {self.others:.0%} by others"


class ColdStart:
    """Hosts that are ready for measurements. `cold_start` creates one.

    Attributes:
        lab: The laboratory.
        links: The rates of its links.
    """

    def __init__(self, lab: Lab, links: Links) -> None:
        self.lab = lab
        self.links = links

    def without_peili(self) -> None:
        """Let the containerds ask only upstream."""
        self._limit(f"{self.links.hosts}mbit", f"{self.links.upstream}mbit")
        for host in self.lab.hosts.values():
            host.containerd.set_mirrors(self.lab.upstream.name)

    def with_peili(self, *, groups: int = 1, log_level: str = "warning") -> None:
        """Start the peilis, and let the containerds ask them first.

        Args:
            groups: The number of groups of hosts. A host knows only the members of its group.
            log_level: What the peilis log.
        """
        self._limit(_UNLIMITED, _UNLIMITED)
        names = [*self.lab.hosts]
        for number in range(groups):
            group = names[number::groups]
            self.lab.start_peili(*group, known=group, limits={}, log={"level": log_level})
            self._wait_until_known([self.lab.hosts[name] for name in group])
        self._limit(f"{self.links.hosts}mbit", f"{self.links.upstream}mbit")

    def prepare(self, layers: Sequence[int]) -> Pulls:
        """Put a new image upstream, and return pulls of it, none of which has started.

        Args:
            layers: The sizes of the layers in bytes.
        """
        return Pulls(self.lab.publish("library/cold", [size - TAR for size in layers]), [self.lab.upstream])

    def measure(self, pulls: Pulls, *, interval: float = 0) -> Figures:
        """Let all hosts pull a new image, and remove it afterwards.

        Args:
            pulls: Returned by `prepare`.
            interval: The seconds between the starts of two pulls.

        Raises:
            RuntimeError: A pull failed.
        """
        hosts = [*self.lab.hosts.values()]
        machine, ours = machine_seconds(), cpu_seconds([os.getpid()])
        pulls.start(hosts, interval=interval)
        ideal = self.links.seconds(pulls.size)
        pulls.wait(_SECONDS + 3 * len(hosts) * ideal)
        available = pulls.elapsed * (os.cpu_count() or 1)
        machine, ours = machine_seconds() - machine, cpu_seconds([os.getpid()]) - ours
        if pulls.failed:
            raise RuntimeError(f"pulls failed: {pulls.failed}")
        for host in hosts:
            host.containerd.remove(pulls.image.by_digest)
        return Figures(
            ideal=ideal,
            copies=pulls.copies(),
            median=statistics.median(pulls.complete.values()) / ideal,
            last=max(pulls.complete.values()) / ideal,
            returned=max(pulls.returned.values()) / ideal,
            busy=machine / available,
            others=max(0.0, machine - ours) / available,
        )

    def _limit(self, hosts: str, upstream: str) -> None:
        """Limit all links in both directions."""
        for host in self.lab.hosts.values():
            _limit_link(host.node, hosts)
        _limit_link(self.lab.upstream.node, upstream)

    def _wait_until_known(self, hosts: Sequence[Host]) -> None:
        """Give each of `hosts` an image of its own, and wait until each other one finds it."""
        found: list[tuple[Host, str]] = []
        for holder in hosts:
            holder.containerd.set_mirrors(self.lab.upstream.name, f"http://{holder.peili.local}")
            image = self.lab.publish("library/own", [1000])
            holder.containerd.pull(image.by_digest)
            path = image.blob_url(image.image.layers[0].digest)
            found += [(host, path) for host in hosts if host is not holder]
        for host, path in found:
            wait_for(partial(host.can_find, path), f"{host.name} finds what its peers have")


def _limit_link(node: Node, rate: str) -> None:
    assert isinstance(node, NamespaceNode)
    node.limit_link(rate)


@contextmanager
def cold_start(
    folder: Path, hosts: int, links: Links, *, release: Release | None = None, access: AccessKind | None = None
) -> Generator[ColdStart]:
    """Run a laboratory of `hosts` hosts.

    A host fetches three layers at the same time, as containerd's CRI plug-in and its transfer service do by default.

    Args:
        folder: The directory for all files. A directory in memory does not measure the disk.
        hosts: The number of hosts.
        links: The rates of the links.
        release: The containerd release of all hosts.
        access: Who may use the peer doors. The default is everyone, or what PEILI_TEST_TLS says.

    Raises:
        RuntimeError: The machine can't limit links.
    """
    if not namespaces_work():
        raise RuntimeError("left out, because it needs network namespaces, and so root")
    names = [f"h{number}" for number in range(hosts)]
    with Lab(
        *names, release=release, snapshotter="overlayfs", parent=folder, access=access, launch=launch_program
    ) as lab:
        yield ColdStart(lab, links)
