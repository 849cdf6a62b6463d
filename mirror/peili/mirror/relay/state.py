"""What one transfer fetches, and what all transfers share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from peili.mirror.content.incoming import IncomingTable
from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.ranges import ByteRange
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.interfaces import Context
from peili.mirror.relay.blame import Blame
from peili.mirror.relay.buffers import BufferPool
from peili.mirror.relay.following import FollowedContent
from peili.mirror.relay.hash_threads import HashThreadPool
from peili.mirror.relay.known_sizes import KnownSizes
from peili.mirror.relay.leases import LeaseReleases
from peili.mirror.relay.parallel import ParallelRequests
from peili.mirror.relay.scores import HolderScores
from peili.mirror.support.tasks import Tasks


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """What a transfer fetches.

    Attributes:
        digest: The content.
        path: The path of the content at a peer.
        wanted: The range that the runtime wants; None for the whole content.
        collect_limit: Content of up to this many bytes is collected and verified before its first byte is sent. Larger
            content is verified while it is sent.
        is_manifest: Whether the content is a manifest or index, which must not be larger than `collect_limit`.
        is_checked: Whether `path` says that the requester may have the content. Peers may send it for that reason.
    """

    digest: Digest
    path: str
    wanted: ByteRange | None
    collect_limit: int
    is_manifest: bool = False
    is_checked: bool = False

    @property
    def is_continuation(self) -> bool:
        """Whether the range begins after the first byte. The runtime may then be unable to go to another source."""
        return self.wanted is not None and bool(self.wanted.first)

    @property
    def is_open_ended(self) -> bool:
        """Whether the range is ``N-`` with N above 0. The runtime may close the response to it early."""
        return self.is_continuation and self.wanted is not None and self.wanted.last is None


class RelayState:
    """What all transfers share while the mirror is entered.

    Args:
        context: The mirror's context, with the relay's log.
        metrics: The mirror's metrics.
        incoming: What this host receives.
        verify: Whether content larger than ``limits.verify_ahead`` is hashed.

    Attributes:
        limits: The limits of `context`.
        log: The log of `context`.
        blame: Which peers failed for which blob.
        scores: The speed and the failures of each peer.
        sizes: The sizes that are known from verified content.
        followed: For which content this host follows another one.
        hash_threads: The threads that hash content.
        buffers: The memory for the content of all transfers.
        releases: The router's leases that are being released.
        background: The tasks that find out where wrong bytes entered, and that check what the runtime keeps.
        traces: The tasks that find out where a wrong byte of a digest entered, while they run.
        checked: The digests of which the runtime's ingest is being checked; see `leftovers`.
        parallel: The transfers of each blob, and the requests to each peer.
    """

    def __init__(self, context: Context, metrics: Metrics, incoming: IncomingTable, *, verify: bool) -> None:
        self.incoming = incoming
        self.context = context
        self.limits, self.log, self.metrics = context.limits, context.log, metrics
        self.verify = verify
        self.blame = Blame(self.limits, metrics=metrics)
        self.scores = HolderScores(self.limits)
        self.sizes = KnownSizes()
        self.followed = FollowedContent()
        self.hash_threads = HashThreadPool()
        self.buffers = BufferPool(self.limits.relay_memory)
        self.releases = LeaseReleases(context)
        self.background = Tasks(context.log)
        self.traces: dict[Digest, asyncio.Task[None]] = {}
        self.checked: set[Digest] = set()
        self.parallel = ParallelRequests(self.limits, metrics.limited.add)

    def start_trace(self, digest: Digest, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which finds out where a wrong byte of `digest` entered, in the background."""
        task = self.traces[digest] = self.background.start(work)

        def end(_: object) -> None:
            if self.traces.get(digest) is task:
                del self.traces[digest]

        task.add_done_callback(end)
