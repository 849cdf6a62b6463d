"""Opens the first source of a transfer, and settles the size and the range of the content."""

from __future__ import annotations

from peili.mirror.errors import NotFound, PeerUnavailable
from peili.mirror.oci.ranges import Unsatisfiable
from peili.mirror.oci.references import OCTET_STREAM
from peili.mirror.oci.references import is_manifest as is_manifest_type
from peili.mirror.relay.holders import Holders
from peili.mirror.relay.ingest import ingest_size
from peili.mirror.relay.source import Source
from peili.mirror.relay.state import RelayState, TransferRequest


class FirstSource:
    """Opens sources that state the right size, as far as the runtime knows it.

    Args:
        request: What to transfer.
        state: The state that all transfers share.
        holders: The holders of the transfer.
        deadline: The end of the whole wait, by the loop's clock.
    """

    def __init__(self, request: TransferRequest, state: RelayState, holders: Holders, deadline: float) -> None:
        self._request = request
        self._state = state
        self._holders = holders
        self._rejections = holders.rejections
        self._deadline = deadline

    async def check_range(self) -> None:
        """Check the range that the runtime wants, if the size of the content is known.

        Raises:
            NotFound: No peer has the content, whatever the range is.
            Unsatisfiable: No byte of the content is in the range.
        """
        wanted, size = self._request.wanted, self._rejections.size
        if wanted and size is not None and not wanted.is_within(size):
            await self._open_head()
            raise Unsatisfiable(wanted, size)

    async def open(self) -> Source:
        """Open the first source, or the next one.

        Raises:
            NotFound: No holder remains.
            Unsatisfiable: A holder has the content, but no byte of it is in the requested range.
        """
        while True:
            source = await self._open_any()
            if await self._has_right_size(source):
                return source

    async def describe(self) -> tuple[str | None, int]:
        """Return the media type and the size by a holder's response to HEAD.

        The type is None if only the content itself shows it: holders of small content contradict each other, a manifest
        is claimed to have the type of something else, or small content of another kind is claimed to be a manifest.

        Raises:
            NotFound: No peer has the content.
        """
        source = await self._open_head()
        request, sizes, size = self._request, self._holders.claimed_sizes, source.span.size
        claimed = (source.media_type or "").partition(";")[0].strip()
        is_contradicted = self._rejections.size is None and bool(sizes - {size})
        if is_contradicted and min(size, *sizes) <= request.collect_limit:
            return None, size
        if request.is_manifest:
            return (claimed if is_manifest_type(claimed) else None), size
        return (None if is_manifest_type(claimed) and size <= request.collect_limit else OCTET_STREAM), size

    async def _open_any(self) -> Source:
        """Open a source, whatever size it states."""
        wanted, holders = self._request.wanted, self._holders
        try:
            return await holders.open(wanted, whole_if_small=True)
        except NotFound:
            if self._rejections.is_size_disputed and self._rejections.accept_size(await self._ingest_size()):
                return await self._open_any()
            size = self._rejections.size_out_of_range()
            if wanted is None or size is None:
                raise
            if size > self._request.collect_limit:
                known = self._rejections.size or await self._ingest_size()
                if size != known and (known is not None or size > self._state.limits.blob_size):
                    raise
                raise Unsatisfiable(wanted, size) from None
        self._rejections.readmit_out_of_range()
        # The whole content, because the size of small content may be stated only after it is verified.
        return await holders.open(None, whole_if_small=True)

    async def _open_head(self) -> Source:
        """Return a source with a holder's response to HEAD."""
        while True:
            source = await self._holders.open(None, head_only=True)
            if await self._has_right_size(source):
                return source

    async def _has_right_size(self, source: Source) -> bool:
        """Return whether the stated size of large content is right, as far as the runtime knows. Fail a wrong peer."""
        if self._rejections.size is not None or source.span.size <= self._request.collect_limit:
            return True
        self._rejections.size = await self._ingest_size()
        try:
            self._rejections.check_size(source.peer, source.span)
        except PeerUnavailable as error:
            await self._holders.fail(source, error)
            return False
        return True

    async def _ingest_size(self) -> int | None:
        return await ingest_size(self._state, self._request.digest, self._deadline)
