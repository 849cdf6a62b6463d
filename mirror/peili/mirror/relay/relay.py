"""What all transfers share, and how many there may be."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from peili.mirror.content.incoming import IncomingRegistry
from peili.mirror.errors import NotFound
from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.ranges import ByteRange, Span
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.interfaces import Context
from peili.mirror.relay.blame import Blame
from peili.mirror.relay.buffers import BufferPool
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
        hash_threads: The threads that hash content.
        buffers: The memory for the content of all transfers.
        releases: The router's leases that are being released.
        background: The tasks that find out where wrong bytes entered, and that check what the runtime keeps.
        traces: The tasks that find out where a wrong byte of a digest entered, while they run.
        checked: The digests of which the runtime's ingest is being checked; see `leftovers`.
        parallel: The transfers of each blob, and the requests to each peer.
    """

    def __init__(self, context: Context, metrics: Metrics, incoming: IncomingRegistry, *, verify: bool) -> None:
        self.incoming = incoming
        self.context = context
        self.limits, self.log, self.metrics = context.limits, context.log, metrics
        self.verify = verify
        self.blame = Blame(self.limits, metrics=metrics)
        self.scores = HolderScores(self.limits)
        self.sizes = KnownSizes()
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


class FetchesInVain(NotFound):
    """The runtime wants the rest of content whose beginning it has wrong, and its unfinished copy was removed.

    If it were sent upstream, it would fetch the rest, and only then fail. Its next pull begins anew.

    Attributes:
        span: What it wants.
    """

    def __init__(self, digest: Digest, span: Span) -> None:
        self.span = span
        super().__init__(f"the runtime had wrong bytes of {digest}, which were removed")


class Relay:
    """Admits transfers from peers; see `open_transfer`. May be used concurrently, on the mirror's loop.

    Args:
        context: The mirror's context. Its client must be usable from `start` to `aclose`.
        metrics: The mirror's metrics.
        incoming: What this host receives. Other hosts read it.
        verify: Whether content larger than ``limits.verify_ahead`` is hashed.

    Attributes:
        under_way: The number of transfers in progress.
    """

    def __init__(self, context: Context, metrics: Metrics, incoming: IncomingRegistry, *, verify: bool) -> None:
        self.under_way = 0
        self._incoming = incoming
        self._context = replace(context, log=context.log.getChild("relay"))
        self._metrics = metrics
        self._verify = verify
        self._state: RelayState | None = None
        self._is_open = False

    def start(self) -> None:
        """Admit transfers, from now until `stop`. Forget what was learned about peers before."""
        self._state = RelayState(self._context, self._metrics, self._incoming, verify=self._verify)
        self._is_open = True

    def stop(self) -> None:
        """Admit no more transfers. Those in progress continue."""
        self._is_open = False

    async def drain(self, timeout: float) -> None:
        """Wait for the leases that are being released, at most `timeout` seconds."""
        if self._state is not None:
            await self._state.releases.drain(timeout)

    async def aclose(self) -> None:
        """Stop, wait up to ``limits.stop_timeout`` seconds for leases that are being released, and end the threads."""
        self.stop()
        if self._state is not None:
            self._state.background.cancel()
            try:
                await self._state.releases.aclose()
                await self._state.background.drain(self._context.limits.stop_timeout)
            finally:  # also if this is cancelled
                self._state.hash_threads.close()
                self._incoming.clear()

    @contextmanager
    def admit(self, digest: Digest, wanted: ByteRange | None) -> Generator[RelayState]:
        """Count one transfer of `digest`, or of the range `wanted`, for as long as the context lasts.

        Raises:
            NotFound: The mirror is not running, there are too many transfers, or the runtime wants the rest of content
                of which it already has wrong bytes. In the last case, the whole could not match the digest, and the
                sender of the rest would be blamed for it. `FetchesInVain` if the runtime's copy was also removed.
        """
        state = self._state
        if state is None or not self._is_open:
            raise NotFound("the mirror is not running")
        busy = max(self.under_way, state.releases.under_way)
        if busy >= state.limits.transfers:
            self._metrics.limited.add("transfers")
            raise NotFound(f"{busy} transfers are in progress, or their leases are being released")
        if wanted is not None and wanted.first != 0 and state.blame.is_poisoned(digest):
            size = state.blame.next_cut(digest)
            if size is not None and wanted.is_within(size):
                raise FetchesInVain(digest, wanted.within(size))
            raise NotFound(f"the runtime has wrong bytes of {digest}")
        self.under_way += 1
        try:
            with state.parallel.transfer(digest):
                yield state
        finally:
            self.under_way -= 1
