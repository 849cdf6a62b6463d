"""What all transfers share, and how many there may be."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from peili.mirror.errors import NotFound
from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.ranges import ByteRange
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.interfaces import Context
from peili.mirror.relay.leases import LeaseReleases
from peili.mirror.relay.parallel import ParallelRequests
from peili.mirror.relay.pipeline import BufferPool
from peili.mirror.relay.reputation import Blame, HolderScores
from peili.mirror.relay.verify import HashThreadPool, KnownSizes


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """What a transfer fetches.

    Attributes:
        digest: the content.
        path: the path of the content at a peer.
        wanted: the range that the runtime wants; None for the whole.
        collect_limit: up to this many bytes are collected and verified before the first one is sent. Larger content
            is verified on the way.
        is_manifest: the content is a manifest or index, which must not be larger than `collect_limit`.
    """

    digest: Digest
    path: str
    wanted: ByteRange | None
    collect_limit: int
    is_manifest: bool = False

    @property
    def is_continuation(self) -> bool:
        """Whether the runtime wants bytes after the first one, so that it may not go to another source any more."""
        return self.wanted is not None and bool(self.wanted.first)

    @property
    def is_open_ended(self) -> bool:
        """Whether the runtime wants all bytes after some later byte, and may close the response early."""
        return self.is_continuation and self.wanted is not None and self.wanted.last is None


class RelayState:
    """What the transfers of one run share.

    Args:
        context: of the mirror, with the relay's log.
        metrics: of the mirror.
        verify: whether content larger than ``limits.verify_ahead`` is hashed.

    Attributes:
        context: of the mirror, with the relay's log. Its router, store, client, limits and log are attributes, too.
        blame: which peers failed for which blob.
        scores: the speed and the failures of each peer.
        sizes: the sizes that are known from verified content.
        hash_threads: the threads that hash content.
        buffers: the memory of all transfers.
        releases: the router's leases that are being released.
        parallel: the transfers of each blob, and the requests to each peer.
    """

    def __init__(self, context: Context, metrics: Metrics, *, verify: bool) -> None:
        self.context = context
        self.router, self.store, self.client = context.router, context.store, context.client
        self.limits, self.log, self.metrics = context.limits, context.log, metrics
        self.verify = verify
        self.blame = Blame(self.limits, metrics=metrics)
        self.scores = HolderScores(self.limits)
        self.sizes = KnownSizes()
        self.hash_threads = HashThreadPool()
        self.buffers = BufferPool(self.limits.relay_memory)
        self.releases = LeaseReleases(context)
        self.parallel = ParallelRequests(self.limits, metrics.limited.add)


class Relay:
    """Admits transfers from peers; see `open_transfer`. May be used concurrently, on the mirror's loop.

    Args:
        context: of the mirror. Its client must be usable from `start` to `aclose`.
        metrics: of the mirror.
        verify: whether content larger than ``limits.verify_ahead`` is hashed; see `Mirror`.

    Attributes:
        under_way: how many transfers there are now.
    """

    def __init__(self, context: Context, metrics: Metrics, *, verify: bool) -> None:
        self.under_way = 0
        self._context = replace(context, log=context.log.getChild("relay"))
        self._metrics = metrics
        self._verify = verify
        self._state: RelayState | None = None
        self._is_open = False

    def start(self) -> None:
        """Admit transfers. What an earlier run learned about peers is forgotten."""
        self._state = RelayState(self._context, self._metrics, verify=self._verify)
        self._is_open = True

    def stop(self) -> None:
        """Admit no more transfers. Current ones go on."""
        self._is_open = False

    async def drain(self, timeout: float) -> None:
        """Wait for the leases that are being released, at most `timeout` seconds."""
        if self._state is not None:
            await self._state.releases.drain(timeout)

    async def aclose(self) -> None:
        """Stop. Wait ``limits.stop_timeout`` seconds for the leases that are being released, and end the threads."""
        self.stop()
        if self._state is not None:
            try:
                await self._state.releases.aclose()
            finally:  # also if this is cancelled
                self._state.hash_threads.close()

    @contextmanager
    def admit(self, digest: Digest, wanted: ByteRange | None) -> Generator[RelayState]:
        """Count one transfer of `digest`, or of the range `wanted`, for as long as the context lasts.

        Raises:
            NotFound: the mirror is not running, there are too many transfers, or the runtime continues wrong bytes. In
                the last case, the rest would be wrong too, and its sender would not be to blame.
        """
        state = self._state
        if state is None or not self._is_open:
            raise NotFound("the mirror is not running")
        busy = max(self.under_way, state.releases.under_way)
        if busy >= state.limits.transfers:
            self._metrics.limited.add("transfers")
            raise NotFound(f"{busy} transfers are under way already, or their leases not yet released")
        if wanted is not None and wanted.first != 0 and state.blame.is_poisoned(digest):
            raise NotFound(f"what the runtime has of {digest} is wrong")
        self.under_way += 1
        try:
            with state.parallel.transfer(digest):
                yield state
        finally:
            self.under_way -= 1
