"""One response for the runtime, put together from one or several holders.

`Transfer.begin` finds a holder and waits for its first bytes, so that "go upstream" is still a possible answer. Then
`Transfer.send_to` reads on. If a holder fails, another one continues at the byte where it stopped. All bytes are hashed
on the way, and the last piece is sent only if the digest is right. If no holder is left, or the digest is wrong, the
transfer is cut, and the runtime asks again for the rest.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager

from peili.mirror.errors import Aborted, NotFound, PeerUnavailable
from peili.mirror.oci.ranges import ByteRange, Span, Unsatisfiable
from peili.mirror.oci.references import OCTET_STREAM, Descriptor, Digest, detect_media_type
from peili.mirror.oci.references import is_manifest as is_manifest_type
from peili.mirror.plugins.interfaces import LeaseEnd
from peili.mirror.relay.holders import Holders
from peili.mirror.relay.ingest import create_verifier, discard_ingest, ingest_size, may_resume
from peili.mirror.relay.pipeline import CollectPipeline, FillPipeline, HashPipeline, PassThroughPipeline, Pipeline, Sink
from peili.mirror.relay.relay import Relay, RelayState, TransferRequest
from peili.mirror.relay.source import Source
from peili.mirror.relay.verify import DigestMismatch, Unverified, Verifier
from peili.mirror.support.deadlines import Deadline


@asynccontextmanager
async def open_transfer(
    relay: Relay, digest: Digest, path: str, *, wanted: ByteRange | None = None, is_manifest: bool = False
) -> AsyncGenerator[Transfer]:
    """Transfer content from peers. What the transfer holds is freed when the context ends.

    This is not a method of `Relay`, because that would make an import cycle.

    Args:
        relay: what admits the transfer.
        digest: the content.
        path: the path of the content at a peer.
        wanted: the range that the runtime wants; None for the whole.
        is_manifest: the content is a manifest or index, which is always collected whole.

    Raises:
        NotFound: the relay admits no transfer; the runtime must go upstream.
    """
    transfer: Transfer | None = None
    try:
        with relay.admit(digest, wanted) as state:
            collect_limit = state.limits.manifest_size if is_manifest else state.limits.verify_ahead
            transfer = Transfer(TransferRequest(digest, path, wanted, collect_limit, is_manifest), state)
            yield transfer
    finally:
        if transfer is not None:
            await transfer.aclose()


class Transfer:
    """The content of one request, from peers. It has one owner, who calls `begin`, then `send_to`, and always `aclose`.

    For a response without a body, the owner calls `describe` instead of `begin` and `send_to`. If it sends nothing
    after `begin`, it calls `complete`.

    Args:
        request: what to transfer.
        state: the relay's state.

    Attributes:
        data: all that `send_to` will send, if it was collected (verified in memory before the first byte is sent).
        media_type: the media type of a manifest or index that was collected whole, else that of octets.
    """

    def __init__(self, request: TransferRequest, state: RelayState) -> None:
        self.data: bytes | None = None
        self.media_type = OCTET_STREAM
        self._request = request
        self._state = state
        self._holders = Holders(request, state)
        self._source: Source | None = None
        self._senders: set[str] = set()  # the peers that sent bytes which are not verified yet
        self._reached: dict[str, int] = {}  # where each of them stopped, which shows who may be to blame
        self._reserved = 0  # bytes of the buffer pool
        self._verifier: Verifier = Unverified(request.digest)
        self._span = Span.whole(0)

    async def begin(self) -> Span:
        """Find a holder, and wait for its first bytes.

        Returns:
            What `send_to` will send.

        Raises:
            NotFound: the runtime must go upstream.
            Unsatisfiable: a holder has the content, but no byte of it is in the requested range.
        """
        async with self._holders.bounded_wait() as deadline:
            return await self._begin(deadline)

    async def describe(self) -> Descriptor:
        """Describe the content by a holder's answer to HEAD, so that no byte of it travels.

        Only if that answer does not tell what small content is, the content is fetched and verified.

        Raises:
            NotFound: the runtime must go upstream.
        """
        async with self._holders.bounded_wait() as deadline:
            source = await self._open_head(deadline)
            media_type, size = self._media_type_by_head(source), source.span.size
            if media_type is None:
                size = (await self._begin(deadline)).size
                media_type = self.media_type
        self.complete()
        return Descriptor(media_type, self._request.digest, size)

    def complete(self) -> None:
        """Tell the router, when its lease ends, that the runtime has all that it wanted."""
        self._holders.lease.end_reason = LeaseEnd.DONE

    def narrow(self, span: Span) -> None:
        """Let `send_to` send only `span` of the whole content that is in `data`; for a range of a manifest."""
        if self.data is not None and self._span.is_whole:
            self.data, self._span = self.data[span.start : span.stop], span

    @property
    def takes_one_stream(self) -> bool:
        """Whether the response to an open-ended range must not state a length, so that the runtime takes one stream.

        A runtime that knows the length may fetch in parallel. Parallel parts cannot be verified, and cost the peers
        more. It makes no difference for a part that could not be verified as one stream either.
        """
        wanted = self._request.wanted
        is_open_ended = wanted is not None and wanted.first is not None and wanted.last is None
        is_one_stream = self._span.start == 0 or not isinstance(self._verifier, Unverified)
        return is_open_ended and self.data is None and is_one_stream

    async def send_to(self, sink: Sink) -> None:
        """Send what `begin` returned to `sink`.

        Raises:
            Aborted: no holder has the rest, or the bytes were wrong.
        """
        if self._span.start == 0:
            self._state.blame.clear(self._request.digest)  # not in `begin`: after a HEAD, the runtime keeps what it has
        if self.data is not None:
            await sink.send(self.data)
            self._holders.lease.progress(self._span.stop)
        elif self._source is not None:
            await self._stream(self._source, sink)
        self.complete()

    async def aclose(self) -> None:
        """Free the memory, the peer's connection and the router's lease."""
        self.data = None
        self._release_memory()
        await self._holders.aclose()

    async def _begin(self, deadline: float) -> Span:
        """Open the first source. Collect small content, and prepare to stream large content."""
        wanted, collect_limit, holders = self._request.wanted, self._request.collect_limit, self._holders
        if wanted and holders.size is not None and not wanted.is_within(holders.size):
            await self._open_head(deadline)  # if no peer has the content, the answer is not found, whatever the range
            raise self._end_out_of_range(holders.size)
        if self._request.is_open_ended and wanted:
            holders.uses_windows = not await may_resume(self._state, self._request.digest, wanted.first or 0)
        while True:
            source = await self._open_first(deadline)
            if not await self._has_right_size(source, deadline):
                continue
            if wanted and source.span.size > collect_limit and wanted.within(source.span.size) != source.span:
                holders.trusts_claims = False  # the content was claimed to be small, so it was asked for whole
                continue
            self._source, self._span = source, source.span
            if source.span.size <= collect_limit and not source.span.is_whole:
                # A part of small content: collect the whole, because only the whole can be verified.
                data = await self._collect_from_part(source)
            else:
                self._verifier = await create_verifier(
                    self._state, self._request, source.span, deadline, is_parallel=holders.uses_windows
                )
                if source.span.length > collect_limit or isinstance(self._verifier, Unverified):
                    return self._span  # `send_to` streams it
                data = await self._collect(source)
            if data is not None:
                return self._keep_wanted(data)

    async def _open_first(self, deadline: float) -> Source:
        """Open the first source. Raises NotFound, Unsatisfiable."""
        wanted, holders, digest = self._request.wanted, self._holders, self._request.digest
        try:
            return await holders.open(wanted, whole_if_small=True)
        except NotFound:
            if holders.is_size_disputed and holders.accept_size(await ingest_size(self._state, digest, deadline)):
                return await self._open_first(deadline)
            size = holders.size_out_of_range()
            if wanted is None or size is None:
                raise
            if size > self._request.collect_limit:
                known = holders.size or await ingest_size(self._state, digest, deadline)
                if size != known and (known is not None or size > self._state.limits.blob_size):
                    raise
                raise self._end_out_of_range(size) from None
        holders.readmit_out_of_range()
        # The whole: the size of small content is stated only after the content is verified.
        return await holders.open(None, whole_if_small=True)

    async def _open_head(self, deadline: float) -> Source:
        """Return a holder's answer to HEAD. Raises NotFound."""
        while True:
            source = await self._holders.open(None, head_only=True)
            if await self._has_right_size(source, deadline):
                return source

    def _media_type_by_head(self, source: Source) -> str | None:
        """Return the media type of the content by an answer to HEAD; None if only the content itself can tell.

        That is so if holders contradict each other, if a manifest is claimed to have the type of something else, and
        the other way round.
        """
        request, holders, size = self._request, self._holders, source.span.size
        claimed = (source.media_type or "").partition(";")[0].strip()
        is_contradicted = holders.size is None and bool(holders.claimed_sizes - {size})
        if is_contradicted and min(size, *holders.claimed_sizes) <= request.collect_limit:
            return None
        if request.is_manifest:
            return claimed if is_manifest_type(claimed) else None
        return None if is_manifest_type(claimed) and size <= request.collect_limit else OCTET_STREAM

    async def _has_right_size(self, source: Source, deadline: float) -> bool:
        """Compare the size of large content with the runtime's, if no manifest states it. Fails a wrong peer."""
        holders = self._holders
        if holders.size is not None or source.span.size <= self._request.collect_limit:
            return True
        holders.size = await ingest_size(self._state, self._request.digest, deadline)
        try:
            holders.check_size(source.peer, source.span)
        except PeerUnavailable as error:
            holders.fail(source.peer, error)
            return False
        return True

    def _end_out_of_range(self, size: int) -> Unsatisfiable:
        """Complete the transfer, and return the error if no byte of the content is in the requested range."""
        self.complete()
        return Unsatisfiable(self._request.wanted, size)

    async def _collect(self, source: Source) -> bytes | None:
        """Collect and verify all of the span; None if it was wrong and another holder should be tried."""
        await self._reserve_memory(self._span.length)
        pipeline = CollectPipeline(self._span.length, self._verifier, self._state.hash_threads.thread())
        try:
            await self._run(pipeline, source)
        except DigestMismatch as error:
            if self._span.start > 0:
                return await self._collect_end_again(error)
            await self._handle_mismatch(was_sent=False)
            return None
        except Aborted as error:
            if self._prepare_restart():
                return None
            raise NotFound(str(error)) from error
        if self._span.is_whole:
            self._record_verified(pipeline.data)
        return pipeline.data

    async def _collect_from_part(self, source: Source) -> bytes | None:
        """Collect and verify all of small content of which `source` has a part; the rest is asked for after it.

        Returns:
            None if it was wrong and another holder should be tried.

        Raises:
            NotFound: the content cannot be completed.
        """
        part, size = source.span, source.span.size
        rest = [span for span in (Span(0, part.start, size), Span(part.stop, size, size)) if span.length]
        await self._reserve_memory(size)
        buffer, verifier = memoryview(bytearray(size)), Verifier(self._request.digest)
        try:
            await self._run(FillPipeline(buffer[part.start : part.stop]), source)
            for span in rest:
                self._span = span
                source = await self._holders.open_rest(source.peer, span)
                await self._run(FillPipeline(buffer[span.start : span.stop]), source)
            self._span = Span.whole(size)
            await self._state.hash_threads.thread().feed(verifier, buffer)
            data = bytes(verifier.finish())
        except DigestMismatch:
            await self._handle_mismatch(was_sent=False)
            return None
        except (Aborted, NotFound) as error:
            if self._prepare_restart():
                return None
            raise NotFound(str(error)) from error
        self._record_verified(data)
        return data

    def _prepare_restart(self) -> bool:
        """Let holders of another size be asked, which may be the right one; whether there are any."""
        if not self._holders.readmit_other_sizes():
            return False
        self._senders.clear()  # their bytes are thrown away
        return True

    def _record_verified(self, data: bytes) -> None:
        """Record the size and the media type of the verified content, and the sizes that a manifest states."""
        self._senders.clear()
        self._state.sizes.add_verified(self._request.digest, len(data))
        self.media_type = detect_media_type(data)
        if is_manifest_type(self.media_type) or (self._request.is_manifest and self.media_type != OCTET_STREAM):
            self._state.sizes.add_manifest(data)

    def _keep_wanted(self, data: bytes) -> Span:
        """Keep what the runtime wants of `data` for `send_to`. Raises Unsatisfiable."""
        wanted = self._request.wanted
        self.data = data
        if wanted is not None and self._span.is_whole:
            if not wanted.is_within(self._span.size):
                raise self._end_out_of_range(self._span.size)
            self.narrow(wanted.within(self._span.size))
        return self._span

    async def _stream(self, source: Source, sink: Sink) -> None:
        state, progress = self._state, self._holders.lease.progress
        try:
            if isinstance(self._verifier, Unverified):
                await self._run(PassThroughPipeline(sink, state.buffers, progress), source)
                return
            try:
                with state.buffers.ring() as ring:
                    thread, start = state.hash_threads.thread(), self._span.start
                    pipeline = HashPipeline(sink, ring, self._verifier, thread, start=start, progress=progress)
                    await self._run(pipeline, source)
            except DigestMismatch as error:
                await sink.send(await self._fetch_end_again(error))
                progress(self._span.stop)
            self._senders.clear()  # their bytes are right
        except DigestMismatch as error:
            await self._handle_mismatch(was_sent=True)
            raise Aborted(str(error)) from error
        finally:
            state.blame.suspect(self._request.digest, self._senders)

    async def _run(self, pipeline: Pipeline, source: Source) -> None:
        """Let the whole span go through `pipeline`, from `source` and the holders that continue.

        Raises:
            DigestMismatch: the bytes are wrong.
            Aborted: no holder is left.
        """
        while True:
            self._senders.add(source.peer.id)
            try:
                await pipeline.consume(source)
                break
            except PeerUnavailable as error:
                self._holders.fail(source.peer, error)
            finally:
                self._reached[source.peer.id] = source.offset
            try:
                source = await self._holders.resume(source.offset, self._span)
            except NotFound as error:
                # The withheld bytes are not the end. If they are sent, the runtime asks again at a later byte.
                await pipeline.release()
                raise Aborted(f"no holder is left at byte {source.offset}") from error
        await pipeline.finish()

    async def _reserve_memory(self, count: int) -> None:
        """Reserve `count` bytes of the buffer pool, and release earlier ones. Raises NotFound if there is no room."""
        state = self._state
        self._release_memory()
        try:
            async with Deadline(state.limits.first_byte_timeout):
                await state.buffers.reserve(count)
        except TimeoutError as error:
            state.metrics.limited.add("relay_memory")
            raise NotFound(f"no memory to collect {self._request.digest} in") from error
        self._reserved = count

    def _release_memory(self) -> None:
        count, self._reserved = self._reserved, 0
        self._state.buffers.release(count)

    async def _collect_end_again(self, error: DigestMismatch) -> bytes:
        """Like `_fetch_end_again`, before anything was sent. Raises NotFound."""
        try:
            return await self._fetch_end_again(error)
        except DigestMismatch as mismatch:
            await self._handle_mismatch(was_sent=True)  # by an earlier transfer
            raise NotFound(str(mismatch)) from mismatch

    async def _fetch_end_again(self, error: DigestMismatch) -> bytes:
        """Fetch the withheld end again, from holders that sent none of it, because the wrong byte may be in it.

        Args:
            error: raised if that does not help.

        Returns:
            The right end.

        Raises:
            DigestMismatch: wrong bytes were sent before the end, or no other holder is left.
        """
        verifier, span, holders = self._verifier, self._span, self._holders
        wrong = bytes(verifier.rewind())
        start = span.stop - len(wrong)
        senders_of_end = {peer_id for peer_id in self._senders if self._reached[peer_id] > start}
        senders = set(self._senders)
        holders.exclude(senders_of_end)
        try:
            while wrong:
                self._senders.clear()
                await self._reserve_memory(len(wrong))
                pipeline = CollectPipeline(len(wrong), verifier, self._state.hash_threads.thread())
                try:
                    await self._run(pipeline, await holders.resume(start, span))
                except DigestMismatch:
                    holders.exclude(self._senders)
                    if verifier.rewind() == wrong:
                        break  # two holders agree about the end, so a byte before it is wrong
                else:
                    holders.blame_for_wrong_bytes(senders_of_end, is_certain=len(senders_of_end) == 1)
                    return pipeline.data
        except (NotFound, Aborted):
            pass  # there is no other holder, or no memory
        finally:
            self._senders.clear()
            self._senders |= senders
        self._blame(senders)  # not the others: a byte before theirs may be wrong
        raise error

    def _blame(self, senders: Collection[str]) -> None:
        """Blame the senders of wrong bytes, and of the bytes that the runtime has. Only a single sender is certain."""
        suspects = self._state.blame.suspects(self._request.digest) if self._span.start > 0 else frozenset[str]()
        senders = suspects.union(senders)
        is_certain = len(senders) == 1 and (self._span.start == 0 or bool(suspects))
        self._holders.blame_for_wrong_bytes(senders, is_certain=is_certain)

    async def _handle_mismatch(self, *, was_sent: bool) -> None:
        """Blame the senders of wrong bytes. If the runtime has received some, discard what it has."""
        state, digest = self._state, self._request.digest
        await self._holders.disconnect()
        if not was_sent:
            self._blame(self._senders)
        self._senders.clear()
        if was_sent:
            state.blame.poison(digest)
            await discard_ingest(state, digest)
