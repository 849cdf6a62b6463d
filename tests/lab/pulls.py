"""Pulls of one image by many hosts: when each host had every blob, and what upstream sent for them.

This module judges nothing. Tests assert, and the bench compares with budgets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tests.lab.lab import Host
from tests.lab.processes import DEADLINE, Process
from tests.lab.upstream import Published, Upstream

from peili.mirror import Descriptor

_PAUSE = 0.02
"""Seconds between two looks at the hosts, which is also how exact the figures are."""


class Pulls:
    """Pulls that were started in one laboratory. All times are seconds since the object was created.

    Args:
        image: What each host pulls.
        upstreams: The registries whose bytes are counted.

    Attributes:
        complete: When a host had every blob, by its name.
        returned: When the pull of a host returned, by its name.
        failed: The output of pulls that failed, by the name of the host.
    """

    def __init__(self, image: Published, upstreams: Sequence[Upstream]) -> None:
        self.image = image
        self.blobs: Sequence[Descriptor] = tuple({each.digest: each for each in image.image.blobs}.values())
        self.size = sum(blob.size for blob in self.blobs)
        self.complete: dict[str, float] = {}
        self.returned: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self._missing: dict[str, list[Path]] = {}
        self._running: dict[str, Process] = {}
        self._positions = [(upstream, upstream.log_position()) for upstream in upstreams]
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """The seconds since the first pull could start."""
        return time.monotonic() - self._started

    @property
    def running(self) -> Mapping[str, Process]:
        """The client processes of the pulls that have not returned, by the name of the host."""
        return self._running

    def start(self, hosts: Sequence[Host], *, interval: float = 0) -> None:
        """Start a pull on each host, one every `interval` seconds. A host whose pull failed may pull again."""
        started = self.elapsed
        for number, host in enumerate(hosts):
            due = started + number * interval
            self.wait_until(partial(self._is_past, due), timeout=interval + DEADLINE)
            blobs = [host.containerd.blob_path(blob.digest) for blob in self.blobs]
            self._missing[host.name] = [blob for blob in blobs if not blob.exists()]
            self.failed.pop(host.name, None)
            self._running[host.name] = host.containerd.start_pull(self.image.by_digest)

    def forget(self, name: str) -> None:
        """Do not wait for the host `name` any more, because the test has killed it."""
        self._missing.pop(name, None)
        self._running.pop(name, None)

    def wait_until(self, condition: Callable[[], bool], *, timeout: float = DEADLINE, pause: float = _PAUSE) -> None:
        """Follow the pulls until `condition` is true.

        Raises:
            AssertionError: It takes longer than `timeout` seconds.
        """
        deadline = self.elapsed + timeout
        while not self._holds(condition):
            assert self.elapsed < deadline, f"waited {timeout:g} s in vain; still pulling: {', '.join(self._running)}"
            time.sleep(pause)

    def wait(self, timeout: float = DEADLINE) -> None:
        """Follow the pulls until all have returned. Raises as `wait_until` does."""
        self.wait_until(lambda: not self._running, timeout=timeout)

    def received(self, host: Host) -> int:
        """Return how many bytes of the image `host` has on its disk."""
        missing = {path.name for path in self._missing.get(host.name, ())}
        whole = sum(blob.size for blob in self.blobs if blob.digest.encoded not in missing)
        return whole + sum(host.containerd.received_bytes(f"sha256:{name}") for name in missing)

    def count(self, upstream: Upstream) -> None:
        """Count the bytes of a further registry from now on."""
        self._positions.append((upstream, upstream.log_position()))

    def copies(self) -> float:
        """Return how many copies of the image the registries have sent, in responses that have ended."""
        return sum(upstream.bytes_sent(position) for upstream, position in self._positions) / self.size

    def _is_past(self, due: float) -> bool:
        return self.elapsed >= due

    def _holds(self, condition: Callable[[], bool]) -> bool:
        """Look at the hosts, and then whether `condition` is true."""
        self._look()
        return condition()

    def _look(self) -> None:
        """Note which hosts have every blob, and which pulls have returned."""
        for name, missing in self._missing.items():
            if missing:
                missing[:] = [blob for blob in missing if not blob.exists()]
            if not missing and name not in self.complete:
                self.complete[name] = self.elapsed
        for name, process in [*self._running.items()]:
            if not process.is_running:
                del self._running[name]
                self.returned[name] = self.elapsed
                if process.wait():
                    self.failed[name] = process.output()
