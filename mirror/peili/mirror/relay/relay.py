"""What the local door asks when this host does not have something: transfers from peers, as many as may be."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from peili.mirror.errors import NotFound
from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.ranges import ByteRange
from peili.mirror.oci.references import Digest
from peili.mirror.relay.means import Fetch, Means
from peili.mirror.relay.transfer import Transfer


class Relay:
    """Transfers from peers. May be used concurrently, on the mirror's loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._means: Means | None = None
        self._metrics = metrics
        self.under_way = 0

    def start(self, means: Means) -> None:
        """Transfers may begin."""
        self._means = means

    def stop(self) -> None:
        """No transfer begins any more; those under way go on."""
        self._means = None

    @asynccontextmanager
    async def transfer(
        self, digest: Digest, path: str, *, wanted: ByteRange | None = None, manifest: bool = False
    ) -> AsyncGenerator[Transfer, None]:
        """A transfer of content that peers have at `path`, freed at the end. Raises NotFound where there can be none.

        A manifest is always collected ahead, whole.
        """
        means = self._means
        if means is None:
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
