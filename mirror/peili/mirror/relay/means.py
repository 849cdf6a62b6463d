"""What a transfer is about, and what transfers work with. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.ranges import ByteRange
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.interfaces import Context
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


class Means:
    """What the transfers of one relay share, in addition to what the mirror's `Context` holds.

    Attributes:
        context: of the mirror; its log is the relay's.
        metrics: of the mirror.
        verify: whether content is hashed that is larger than ``limits.verify_ahead``.
    """

    def __init__(self, context: Context, metrics: Metrics, *, verify: bool) -> None:
        self.context = context
        self.metrics = metrics
        self.verify = verify
        self.router, self.store, self.client = context.router, context.store, context.client
        self.limits, self.log = context.limits, context.log
        self.blame = Blame(self.limits, metrics=metrics)
        self.health = HolderScores(self.limits)
        self.sizes = KnownSizes()
        self.hasher = HashThreads()
        self.memory = BufferPool(self.limits.relay_memory)
        self.releases = LeaseReleases(self.limits, metrics, self.log)
        self.turns = ParallelRequests(self.limits, metrics.limited.add)


class Sink(Protocol):
    """Where a body goes: a door's reply. Its errors (OSError, TimeoutError) are the runtime's."""

    @property
    def socket_writer(self) -> SocketWriter | None:
        """The way to the runtime's socket past ASGI, where there is one."""

    async def send(self, data: bytes | memoryview) -> None:
        """More of the body; `data` may be overwritten once this returns."""
