"""One response for the runtime, assembled from one or several holders.

`Transfer.begin` finds a holder and waits for its first bytes. Until then, the runtime can still be sent upstream. Then
`Transfer.send_to` sends the content. If a holder fails, another one continues at the byte where it stopped. All bytes
are hashed while they are sent, and the last piece is sent only if the digest is right. If no holder remains, or the
digest is wrong, the response is cut off, and the runtime requests the rest again.
"""

from __future__ import annotations

from peili.mirror.errors import Aborted, NotFound
from peili.mirror.oci.ranges import Span, Unsatisfiable
from peili.mirror.oci.references import OCTET_STREAM, Descriptor, detect_media_type
from peili.mirror.oci.references import is_manifest as is_manifest_type
from peili.mirror.plugins.acquiring import LeaseEnd
from peili.mirror.relay.buffers import Reservation
from peili.mirror.relay.holders import Holders
from peili.mirror.relay.ingest import create_verifier, may_resume
from peili.mirror.relay.leftovers import check_later
from peili.mirror.relay.opening import FirstSource
from peili.mirror.relay.pipeline import CollectPipeline, FillPipeline, HashPipeline, PassThroughPipeline, Sink
from peili.mirror.relay.reception import Reception
from peili.mirror.relay.source import Source
from peili.mirror.relay.state import RelayState, TransferRequest
from peili.mirror.relay.verify import DigestMismatch, FoundWrong, Unverified, Verifier
from peili.mirror.relay.wrong_bytes import WrongBytes


class Transfer:
    """The content of one request, from peers. Its one owner calls `begin`, then `send_to`, and `aclose` in any case.

    For a response without a body, the owner calls `describe` instead of `begin` and `send_to`. If it sends nothing
    after `begin`, it calls `complete`.

    Args:
        request: What to transfer.
        state: The state that all transfers share.

    Attributes:
        data: All bytes that `send_to` will send, if they were collected: verified in memory before the first one is
            sent.
        media_type: The media type of a manifest or index that was collected whole; otherwise
            ``application/octet-stream``.
        is_abandoned: Whether the runtime has disconnected. The owner sets it.
    """

    def __init__(self, request: TransferRequest, state: RelayState) -> None:
        self.data: bytes | None = None
        self.media_type = OCTET_STREAM
        self.is_abandoned = False
        self._is_complete = False
        self._request = request
        self._state = state
        self._holders = Holders(request, state)
        self._source: Source | None = None
        self._reception = Reception(request, state, self._holders)
        self._memory = Reservation(state.buffers, state.limits.first_byte_timeout, state.metrics.limited.add)
        self._wrong_bytes = WrongBytes(request, state, self._holders, self._reception, self._memory)
        self._verifier: Verifier = Unverified(request.digest)
        self._span = Span.whole(0)

    async def begin(self) -> Span:
        """Find a holder, and wait for its first bytes.

        Returns:
            What `send_to` will send.

        Raises:
            NotFound: No peer sends the content; the runtime must go upstream.
            Unsatisfiable: A holder has the content, but no byte of it is in the requested range.
        """
        self._reception.share()
        async with self._holders.bounded_wait() as deadline:
            try:
                return await self._open_first(deadline)
            except Unsatisfiable:
                self.complete()
                raise

    async def describe(self) -> Descriptor:
        """Return the media type and the size of the content.

        A holder's response to HEAD usually states both. If it does not state the type of small content reliably, the
        content is fetched and verified.

        Raises:
            NotFound: No peer has the content; the runtime must go upstream.
        """
        self._holders.reads_in_flight = False  # it makes no other host wait for the content
        async with self._holders.bounded_wait() as deadline:
            media_type, size = await FirstSource(self._request, self._state, self._holders, deadline).describe()
            if media_type is None:
                size = (await self._open_first(deadline)).size
                media_type = self.media_type
        self.complete()
        return Descriptor(media_type, self._request.digest, size)

    @property
    def senders(self) -> dict[str, int]:
        """The bytes that each peer sent so far, by its id, wrong ones included. The last peer sends now."""
        return self._reception.senders

    @property
    def has_sent_wrong_bytes(self) -> bool:
        """Whether the runtime got wrong bytes. The store was asked to discard them."""
        return self._wrong_bytes.were_sent

    def complete(self) -> None:
        """Note that the runtime has all that it wanted. The router learns this when its lease is released."""
        self._holders.lease.end_reason = LeaseEnd.DONE
        self._is_complete = True

    def trim_to(self, span: Span) -> None:
        """Let `send_to` send only `span` of the whole content that is in `data`: the range of a manifest."""
        if self.data is not None and self._span.is_whole:
            self.data, self._span = self.data[span.start : span.stop], span

    @property
    def takes_one_stream(self) -> bool:
        """Whether the response must not state its length, so that the runtime reads it as one stream.

        A runtime that knows the length may fetch further parts in parallel. Parallel parts cannot be verified, and they
        cost the peers more. This applies to the response to an open-ended range, if its bytes can be verified or are
        still arriving at the peer.
        """
        wanted = self._request.wanted
        is_open_ended = wanted is not None and wanted.first is not None and wanted.last is None
        is_in_flight = self._source is not None and self._source.in_flight is not None
        is_one_stream = self._span.start == 0 or is_in_flight or not isinstance(self._verifier, Unverified)
        return is_open_ended and self.data is None and is_one_stream

    async def send_to(self, sink: Sink) -> None:
        """Send the bytes that `begin` returned the span of to `sink`.

        Raises:
            Aborted: No holder has the rest, or the bytes were wrong.
            OSError: The runtime has disconnected or reads nothing.
        """
        if self._span.start == 0:
            self._state.blame.clear(self._request.digest)  # not in `begin`: a HEAD does not discard the runtime's bytes
        if self.data is not None:
            await sink.send(self.data)
            self._holders.lease.progress(self._span.stop)
        elif self._source is not None:
            await self._stream(self._source, sink)
        self.complete()

    async def aclose(self) -> None:
        """Free the memory, the peer's connection and the router's lease."""
        self._reception.close(is_abandoned=self.is_abandoned, is_complete=self._is_complete)
        self.data = None
        self._memory.release()
        if self.is_abandoned:
            self._holders.lease.abandon()
        await self._holders.aclose()
        check_later(self._request.digest, self._state)

    async def _open_first(self, deadline: float) -> Span:
        """Open the first source. Collect small content, and prepare to stream large content."""
        wanted, collect_limit, holders = self._request.wanted, self._request.collect_limit, self._holders
        first = FirstSource(self._request, self._state, holders, deadline)
        await first.check_range()
        if self._request.is_open_ended and wanted:
            holders.requests.uses_windows = not await may_resume(self._state, self._request.digest, wanted.first or 0)
        while True:
            source = await first.open()
            if wanted and source.span.size > collect_limit and wanted.within(source.span.size) != source.span:
                holders.trusts_claims = False  # the content was wrongly claimed to be small, and so requested whole
                continue
            self._source, self._span = source, source.span
            if source.span.size <= collect_limit and not source.span.is_whole:
                # A part of small content: collect the whole, because only the whole can be verified.
                data = await self._collect_from_part(source)
            else:
                self._verifier = await create_verifier(
                    self._state, self._request, source.span, deadline, is_parallel=holders.requests.uses_windows
                )
                self._reception.record(self._verifier, source.span.start)
                if source.span.length > collect_limit or isinstance(self._verifier, Unverified):
                    return self._span  # `send_to` streams it
                data = await self._collect(source)
            if data is not None:
                return self._keep_wanted(data)

    async def _collect(self, source: Source) -> bytes | None:
        """Collect and verify the whole span. Return None if it was wrong and another holder should be tried."""
        await self._memory.reserve(self._span.length)
        pipeline = CollectPipeline(self._span.length, self._verifier, self._state.hash_threads.thread())
        try:
            await self._reception.run(pipeline, source, self._span)
        except DigestMismatch as error:
            if self._span.start > 0:
                return await self._collect_end_again(error)
            await self._wrong_bytes.handle_unsent(self._span)
            return None
        except Aborted as error:
            if self._prepare_restart():
                return None
            raise NotFound(str(error)) from error
        if self._span.is_whole:
            self._record_verified(pipeline.data)
        return pipeline.data

    async def _collect_from_part(self, source: Source) -> bytes | None:
        """Collect and verify small content as a whole. `source` has a part of it; the rest is requested afterwards.

        Returns:
            The content; None if it was wrong and another holder should be tried.

        Raises:
            NotFound: The content cannot be completed.
        """
        part, size = source.span, source.span.size
        rest = [span for span in (Span(0, part.start, size), Span(part.stop, size, size)) if span.length]
        await self._memory.reserve(size)
        buffer, verifier = memoryview(bytearray(size)), Verifier(self._request.digest)
        try:
            await self._reception.run(FillPipeline(buffer[part.start : part.stop]), source, self._span)
            for span in rest:
                self._span = span
                source = await self._holders.open_rest(source, span)
                await self._reception.run(FillPipeline(buffer[span.start : span.stop]), source, self._span)
            self._span = Span.whole(size)
            await self._state.hash_threads.thread().feed(verifier, buffer)
            data = bytes(verifier.finish())
        except DigestMismatch:
            await self._wrong_bytes.handle_unsent(self._span)
            return None
        except (Aborted, NotFound) as error:
            if self._prepare_restart():
                return None
            raise NotFound(str(error)) from error
        self._record_verified(data)
        return data

    def _prepare_restart(self) -> bool:
        """Readmit the holders that state another size, which may be the right one. Return whether there are any."""
        if not self._holders.rejections.readmit_other_sizes():
            return False
        self._reception.unverified.clear()  # their bytes are discarded
        self._reception.discard()
        return True

    def _record_verified(self, data: bytes) -> None:
        """Record the size and the media type of the verified content, and the sizes that a manifest states."""
        self._reception.unverified.clear()
        self._state.sizes.add_verified(self._request.digest, len(data))
        self.media_type = detect_media_type(data)
        if is_manifest_type(self.media_type) or (self._request.is_manifest and self.media_type != OCTET_STREAM):
            self._state.followed.add(self._state.sizes.add_manifest(data))

    def _keep_wanted(self, data: bytes) -> Span:
        """Keep the part of `data` that the runtime wants, for `send_to`. Raises Unsatisfiable."""
        wanted = self._request.wanted
        self.data = data
        if wanted is not None and self._span.is_whole:
            if not wanted.is_within(self._span.size):
                raise Unsatisfiable(wanted, self._span.size)
            self.trim_to(wanted.within(self._span.size))
        return self._span

    async def _stream(self, source: Source, sink: Sink) -> None:
        """Send the span to `sink` while it arrives, and verify it if possible."""
        state, progress = self._state, self._holders.lease.progress
        try:
            if isinstance(self._verifier, Unverified):
                await self._reception.run(PassThroughPipeline(sink, state.buffers, progress), source, self._span)
                return
            try:
                with state.buffers.ring() as ring:
                    thread, start = state.hash_threads.thread(), self._span.start
                    pipeline = HashPipeline(sink, ring, self._verifier, thread, start=start, progress=progress)
                    await self._reception.run(pipeline, source, self._span)
            except FoundWrong:
                self._reception.trace_wrong_byte()
                raise
            except DigestMismatch as error:
                await sink.send(await self._wrong_bytes.fetch_end_again(error, self._verifier, self._span))
                progress(self._span.stop)
            self._reception.unverified.clear()  # their bytes are right
        except DigestMismatch as error:
            await self._wrong_bytes.handle_sent(self._span)
            raise Aborted(str(error)) from error
        finally:
            self._reception.unverified.suspect()

    async def _collect_end_again(self, error: DigestMismatch) -> bytes:
        """Fetch the end again when this transfer has sent nothing yet. Raises NotFound."""
        try:
            return await self._wrong_bytes.fetch_end_again(error, self._verifier, self._span)
        except DigestMismatch as mismatch:
            await self._wrong_bytes.handle_sent(self._span)  # an earlier transfer sent the bytes before the span
            raise NotFound(str(mismatch)) from mismatch
