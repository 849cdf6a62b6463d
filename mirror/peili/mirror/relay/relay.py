"""Transfers content from peers to the runtime: how many transfers there may be, and which are of use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from peili.mirror.content.incoming import IncomingTable
from peili.mirror.errors import NotFound
from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.ranges import ByteRange, Span
from peili.mirror.oci.references import Digest
from peili.mirror.oci.requests import Target
from peili.mirror.plugins.interfaces import Context
from peili.mirror.relay.state import RelayState, TransferRequest
from peili.mirror.relay.transfer import Transfer


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
    """Transfers content from peers. May be used concurrently, on the mirror's loop.

    Args:
        context: The mirror's context. Its client must be usable from `start` to `aclose`.
        metrics: The mirror's metrics.
        incoming: What this host receives. Other hosts read it.
        verify: Whether content larger than ``limits.verify_ahead`` is hashed.

    Attributes:
        transfer_count: The number of transfers in progress.
    """

    def __init__(self, context: Context, metrics: Metrics, incoming: IncomingTable, *, verify: bool) -> None:
        self.transfer_count = 0
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
            self._state.background.close()
            try:
                await self._state.releases.aclose()
                await self._state.background.drain(self._context.limits.stop_timeout)
            finally:  # also if this is cancelled
                self._state.hash_threads.close()
                self._incoming.clear()

    @asynccontextmanager
    async def open_transfer(
        self, digest: Digest, target: Target, *, wanted: ByteRange | None = None, is_manifest: bool = False
    ) -> AsyncGenerator[Transfer]:
        """Transfer content from peers. The resources of the transfer are freed when the context ends.

        Args:
            digest: The digest of the content.
            target: What the runtime requests, as peers are asked for it.
            wanted: The range that the runtime wants; None for the whole content.
            is_manifest: Whether the content is a manifest or index, which is always collected whole.

        Yields:
            The transfer, which has not begun.

        Raises:
            NotFound: The relay admits no transfer; the runtime must go upstream.
        """
        transfer: Transfer | None = None
        try:
            with self._admit(digest, wanted) as state:
                collect_limit = state.limits.manifest_size if is_manifest else state.limits.verify_ahead
                request = TransferRequest(
                    digest, target.peer_path, wanted, collect_limit, is_manifest, target.is_checked
                )
                transfer = Transfer(request, state)
                yield transfer
        except (asyncio.CancelledError, OSError):
            if transfer is not None:
                transfer.is_abandoned = True
            raise
        finally:
            if transfer is not None:
                await transfer.aclose()

    @contextmanager
    def _admit(self, digest: Digest, wanted: ByteRange | None) -> Generator[RelayState]:
        """Count one transfer of `digest`, or of the range `wanted`, for as long as the context lasts.

        Raises:
            NotFound: The mirror is not running, there are too many transfers, or the runtime wants the rest of content
                of which it already has wrong bytes. In the last case, the whole could not match the digest, and the
                sender of the rest would be blamed for it. `FetchesInVain` if the runtime's copy was also removed.
        """
        state = self._state
        if state is None or not self._is_open:
            raise NotFound("the mirror is not running")
        busy = max(self.transfer_count, state.releases.count)
        if busy >= state.limits.transfers:
            self._metrics.limited.add("transfers")
            raise NotFound(f"{busy} transfers are in progress, or their leases are being released")
        if wanted is not None and wanted.first != 0 and state.blame.is_poisoned(digest):
            size = state.blame.next_cut(digest)
            if size is not None and wanted.is_within(size):
                raise FetchesInVain(digest, wanted.within(size))
            raise NotFound(f"the runtime has wrong bytes of {digest}")
        self.transfer_count += 1
        try:
            with state.parallel.transfer(digest):
                yield state
        finally:
            self.transfer_count -= 1
