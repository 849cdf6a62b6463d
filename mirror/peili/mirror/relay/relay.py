"""What the local door asks when this host does not have something: transfers from peers, as many as may be."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

from peili.mirror.errors import NotFound
from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.ranges import ByteRange
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.interfaces import Context
from peili.mirror.relay.means import Fetch, Means
from peili.mirror.relay.transfer import Transfer


class Relay:
    """Transfers from peers. May be used concurrently, on the mirror's loop.

    Args:
        context: of the mirror. Its client must be usable from `start` to `aclose`.
        metrics: of the mirror.
        verify: hash all content on its way; see `Mirror`.

    Attributes:
        under_way: how many transfers there are now.
    """

    def __init__(self, context: Context, metrics: Metrics, *, verify: bool) -> None:
        self._context = replace(context, log=context.log.getChild("relay"))
        self._metrics = metrics
        self._verify = verify
        self._means: Means | None = None
        self._is_open = False
        self.under_way = 0

    def start(self) -> None:
        """Let transfers begin. What an earlier run learned about peers is forgotten."""
        self._means = Means(self._context, self._metrics, verify=self._verify)
        self._is_open = True

    def stop(self) -> None:
        """Let no transfer begin any more; those under way go on."""
        self._is_open = False

    async def drain(self, timeout: float) -> None:
        """Wait for the leases that are being released, `timeout` seconds at most."""
        if self._means is not None:
            await self._means.releases.drain(timeout)

    async def aclose(self) -> None:
        """Stop. Wait for the leases that are being released, ``limits.stop_timeout`` seconds at most, and end the
        threads that hash.
        """
        self.stop()
        if self._means is not None:
            try:
                await self._means.releases.aclose()
            finally:  # also if this is cancelled
                self._means.hasher.close()

    @asynccontextmanager
    async def transfer(
        self, digest: Digest, path: str, *, wanted: ByteRange | None = None, manifest: bool = False
    ) -> AsyncGenerator[Transfer, None]:
        """A transfer of content that peers have at `path`, freed at the end. Raises NotFound where there can be none.

        A manifest is always collected ahead, whole.
        """
        means = self._means
        if means is None or not self._is_open:
            raise NotFound("the mirror is not running")
        busy = max(self.under_way, means.releases.under_way)
        if busy >= means.limits.transfers:
            self._metrics.limited.add("transfers")
            raise NotFound(f"{busy} transfers are under way already, or their leases not yet released")
        self._refuse_poisoned(means, digest, wanted)
        ahead = means.limits.manifest_size if manifest else means.limits.verify_ahead
        transfer = Transfer(Fetch(digest, path, wanted, ahead, manifest), means)
        self.under_way += 1
        try:
            with means.turns.transfer(digest):
                yield transfer
        finally:
            self.under_way -= 1
            await transfer.aclose()

    def _refuse_poisoned(self, means: Means, digest: Digest, wanted: ByteRange | None) -> None:
        """Whatever continues a wrong beginning will be wrong, and the peer that sends the rest is not to blame."""
        continues = wanted is not None and wanted.first != 0
        if continues and means.blame.is_poisoned(digest):
            raise NotFound(f"what the runtime has of {digest} is wrong")
