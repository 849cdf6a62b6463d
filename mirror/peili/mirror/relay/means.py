"""What a transfer is about, and what transfers work with. Values only."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from peili.mirror.client.client import PeerClient
from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.ranges import ByteRange
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.interfaces import Router, Store
from peili.mirror.relay.buffers import BufferPool
from peili.mirror.relay.leases import LeaseReleases
from peili.mirror.relay.parallel import ParallelRequests
from peili.mirror.relay.reputation import Blame, HolderScores
from peili.mirror.relay.verify import HashThreads, KnownSizes
from peili.mirror.server.socket_writer import SocketWriter


@dataclass(frozen=True, slots=True)
class Fetch:
    """What is to be fetched: the content of `digest`, which peers have at `path`; all of it, or the part `wanted`.

    Up to `ahead` bytes are collected and verified before the first one is given out. A `manifest` has no more.
    """

    digest: Digest
    path: str
    wanted: ByteRange | None
    ahead: int
    manifest: bool = False

    @property
    def continues(self) -> bool:
        """Whether the runtime asks for what is behind the beginning: it may have nobody else to ask then."""
        return self.wanted is not None and bool(self.wanted.first)

    @property
    def is_open_ended(self) -> bool:
        """Whether the runtime asks for all from some byte behind the beginning, and may close the answer early."""
        return self.continues and self.wanted is not None and self.wanted.last is None


@dataclass(frozen=True, slots=True)
class Means:
    """What transfers work with."""

    router: Router
    store: Store
    client: PeerClient
    blame: Blame
    health: HolderScores
    sizes: KnownSizes
    hasher: HashThreads
    memory: BufferPool
    releases: LeaseReleases
    turns: ParallelRequests
    limits: Limits
    verify: bool
    log: logging.Logger
    metrics: Metrics


class Sink(Protocol):
    """Where a body goes: a door's reply. Its errors (OSError, TimeoutError) are the runtime's."""

    @property
    def socket_writer(self) -> SocketWriter | None:
        """The way to the runtime's socket past ASGI, where there is one."""

    async def send(self, data: bytes | memoryview) -> None:
        """More of the body; `data` may be overwritten once this returns."""
