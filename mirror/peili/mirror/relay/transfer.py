"""One answer for the runtime, put together from one or several holders.

Theory of operation: `begin` finds a holder and has the first bytes in hand, so that until then the answer can still be
"go upstream". From then on `pour` reads on; a holder that fails is replaced by another one at the byte where it
stopped. All is hashed on the way, and the last piece is given out only when the digest is right. When no holder is
left, or the digest is wrong, the transfer is cut, and the runtime comes back for the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from peili.mirror.errors import Aborted, NotFound, PeerUnavailable
from peili.mirror.oci.media_types import OCTET_STREAM, detect, is_manifest
from peili.mirror.oci.ranges import Span, Unsatisfiable
from peili.mirror.oci.references import Descriptor
from peili.mirror.plugins.advice import LeaseEnd
from peili.mirror.relay.holders import Supply
from peili.mirror.relay.ingest import discard_ingest, ingest_size, may_resume, resumed_verifier
from peili.mirror.relay.means import Fetch, Means, Sink
from peili.mirror.relay.pipeline import CollectPipeline, FillPipeline, HashPipeline, PassThroughPipeline, Pipeline
from peili.mirror.relay.source import Source
from peili.mirror.relay.verify import DigestMismatch, Unverified, Verifier
from peili.mirror.support.deadlines import Deadline

_PART = "%s: passed on unverified: bytes %d to %d are not its end"
_IN_PARALLEL = "%s: passed on unverified: the runtime fetches it in parallel parts, this one from byte %d on"
_UNVERIFIED = "%s: passed on unverified: the beginning can't be read back%s"


class Transfer:
    """The content of one `Fetch`, from peers. One owner: `begin`, then `pour`, and `aclose` in any case.

    Or `describe`, for a runtime that wants no body. `data` is all that `pour` will give, where it was collected ahead.
    `media_type` is that of a manifest or index of which all was collected; of anything else that of octets.
    """

    def __init__(self, fetch: Fetch, means: Means) -> None:
        self.data: bytes | None = None
        self.media_type = OCTET_STREAM
        self._fetch = fetch
        self._means = means
        self._supply = Supply(fetch, means)
        self._source: Source | None = None
        self._feeders: set[str] = set()
        self._reached: dict[str, int] = {}  # where each of them ended
        self._room = 0  # bytes of memory that were taken to collect in
        self._verifier: Verifier = Unverified(fetch.digest)
        self._span = Span.whole(0)
        self._resumes = False

    async def begin(self) -> Span:
        """Find a holder; returns what `pour` will give. Raises NotFound: the runtime shall go upstream; Unsatisfiable
        where somebody has the content, and no byte of it is in the range that the runtime wants.
        """
        async with self._supply.patience() as ends:
            return await self._begin(ends)

    async def describe(self) -> Descriptor:
        """What the content is, as a holder's answer to HEAD says it: no byte of it travels.

        But where that answer leaves open what small content is, that is fetched and verified. Raises NotFound.
        """
        async with self._supply.patience() as ends:
            source = await self._look(ends)
            media_type, size = self._type_by_head(source), source.span.size
            if media_type is None:
                size = (await self._begin(ends)).size
                media_type = self.media_type
        self.answered()
        return Descriptor(media_type, self._fetch.digest, size)

    def answered(self) -> None:
        """The runtime has all that it wanted of the holders; the router hears that the transfer is done."""
        self._supply.reason = LeaseEnd.DONE

    def narrow(self, span: Span) -> None:
        """Let `pour` give only `span` of the whole, which is in `data`."""
        if self.data is not None and self._span.is_whole:
            self.data, self._span = self.data[span.start : span.stop], span

    async def _begin(self, ends: float) -> Span:
        wanted, ahead, supply = self._fetch.wanted, self._fetch.ahead, self._supply
        if wanted and supply.size is not None and not wanted.is_within(supply.size):
            await self._look(ends)  # where nobody has the content, its range is not what is wrong
            raise self._out_of_range(supply.size)
        supply.in_windows = self._fetch.is_open_ended and not await may_resume(self._means, self._fetch)
        while True:
            source = await self._first(ends)
            if not await self._is_right_size(source, ends):
                continue
            if wanted and source.span.size > ahead and wanted.within(source.span.size) != source.span:
                supply.believes = False  # it was said to be small, so the whole was asked for
                continue
            self._source, self._span = source, source.span
            if source.span.size <= ahead and not source.span.is_whole:
                data = await self._complete(source)
            else:
                self._verifier = await self._choose_verifier(ends)
                if source.span.length > ahead or isinstance(self._verifier, Unverified):
                    return self._span
                data = await self._collect(source)
            if data is not None:
                return self._cut_out(data)

    async def _first(self, ends: float) -> Source:
        """The first holder's answer. Raises NotFound, Unsatisfiable."""
        wanted, supply = self._fetch.wanted, self._supply
        try:
            return await supply.begin(wanted)
        except NotFound:
            if supply.is_size_disputed and supply.expect(await ingest_size(self._means, self._fetch.digest, ends)):
                return await self._first(ends)
            size = supply.end()
            if wanted is None or size is None:
                raise
            if size > self._fetch.ahead:
                known = supply.size or await ingest_size(self._means, self._fetch.digest, ends)
                if size != known and (known is not None or size > self._means.limits.blob_size):
                    raise
                raise self._out_of_range(size) from None
        supply.ask_again()
        return await supply.begin(None)  # small content is verified before its size is told

    async def _look(self, ends: float) -> Source:
        """A holder's answer to HEAD. Raises NotFound."""
        while True:
            source = await self._supply.look()
            if await self._is_right_size(source, ends):
                return source

    def _type_by_head(self, source: Source) -> str | None:
        """Of what type the content is, by the answer to HEAD; None where only the content itself can tell.

        That is so where holders contradict each other, and where what is said of a manifest is no manifest's type, or
        the other way round. A type that is not known is told by nobody but the document.
        """
        fetch, supply, size = self._fetch, self._supply, source.span.size
        said = (source.media_type or "").partition(";")[0].strip()
        contradicted = supply.size is None and bool(supply.claims - {size})
        if contradicted and min(size, *supply.claims) <= fetch.ahead:
            return None
        if fetch.manifest:
            return said if is_manifest(said) else None
        return None if is_manifest(said) and size <= fetch.ahead else OCTET_STREAM

    def _out_of_range(self, size: int) -> Unsatisfiable:
        """What to raise where the content, of `size` bytes, has none of those that are wanted."""
        self.answered()
        return Unsatisfiable(self._fetch.wanted, size)

    @property
    def takes_one_stream(self) -> bool:
        """Whether to tell the runtime no length, so that it takes what an open-ended range asks for as one stream.

        A runtime that knows the length may fetch in parallel. Such parts can't be verified, and cost the peers more.
        The exception is a part that could not be verified in one stream either.
        """
        wanted = self._fetch.wanted
        open_ended = wanted is not None and wanted.first is not None and wanted.last is None
        return open_ended and self.data is None and (self._span.start == 0 or self._resumes)

    async def pour(self, sink: Sink) -> None:
        """Send to `sink` what `begin` returned. Raises Aborted where the rest can't be had, or was wrong."""
        if self._span.start == 0:
            self._means.blame.clear(self._fetch.digest)  # not earlier: a HEAD takes no body, and begins nothing anew
        if self.data is not None:
            await sink.send(self.data)
            self._supply.progress(self._span.stop)
        elif self._source is not None:
            await self._pour(self._source, sink)
        self._supply.reason = LeaseEnd.DONE

    async def aclose(self) -> None:
        """Free the memory, the peer's connection and the router's lease."""
        self.data = None
        self._give_room_back()
        await self._supply.aclose()

    async def _pour(self, source: Source, sink: Sink) -> None:
        means, progress = self._means, self._supply.progress
        try:
            if isinstance(self._verifier, Unverified):
                await self._take(source, PassThroughPipeline(sink, means.memory, progress))
                return
            try:
                with means.memory.ring() as ring:
                    hashing = HashPipeline(
                        sink, ring, self._verifier, means.hasher.thread(), start=self._span.start, progress=progress
                    )
                    await self._take(source, hashing)
            except DigestMismatch as error:
                await sink.send(await self._end_from_another(error))
                progress(self._span.stop)
            self._feeders.clear()  # what they sent is right
        except DigestMismatch as error:
            await self._distrust(passed_on=True)
            raise Aborted(str(error)) from error
        finally:
            means.blame.suspect(self._fetch.digest, self._feeders)

    async def _collect(self, source: Source) -> bytes | None:
        """All of the content, verified; None where it was wrong and another holder shall be tried."""
        await self._take_room(self._span.length)
        collecting = CollectPipeline(self._span.length, self._verifier, self._means.hasher.thread())
        try:
            await self._take(source, collecting)
        except DigestMismatch as error:
            if self._span.start > 0:
                return await self._rest_from_another(error)
            await self._distrust(passed_on=False)
            return None
        except Aborted as error:
            if self._begins_anew():
                return None
            raise NotFound(str(error)) from error
        if self._span.is_whole:
            self._note(collecting.data)
        return collecting.data

    async def _complete(self, source: Source) -> bytes | None:
        """All of small content, of which `source` brings a part, verified: the rest is asked for after it. None as in
        `_collect`. Raises NotFound.
        """
        part, size = source.span, source.span.size
        rest = [span for span in (Span(0, part.start, size), Span(part.stop, size, size)) if span.length]
        await self._take_room(size)
        room, verifier = memoryview(bytearray(size)), Verifier(self._fetch.digest)
        try:
            await self._take(source, FillPipeline(room[part.start : part.stop]))
            for span in rest:
                self._span = span
                source = await self._supply.more(source.peer, span)
                await self._take(source, FillPipeline(room[span.start : span.stop]))
            self._span = Span.whole(size)
            await self._means.hasher.thread().feed(verifier, room)
            data = bytes(verifier.finish())
        except DigestMismatch:
            await self._distrust(passed_on=False)
            return None
        except (Aborted, NotFound) as error:
            if self._begins_anew():
                return None
            raise NotFound(str(error)) from error
        self._note(data)
        return data

    def _begins_anew(self) -> bool:
        """Whether there are holders of another size, which may be the right one: nothing was given out yet."""
        if not self._supply.forgive():
            return False
        self._feeders.clear()  # what these sent is thrown away
        return True

    def _note(self, data: bytes) -> None:
        """`data` is the whole content, verified."""
        self._feeders.clear()
        self._means.sizes.add_verified(self._fetch.digest, len(data))
        self.media_type = detect(data)
        if is_manifest(self.media_type) or (self._fetch.manifest and self.media_type != OCTET_STREAM):
            self._means.sizes.add_manifest(data)

    async def _take(self, source: Source, passage: Pipeline) -> None:
        """Let all of the span go by `passage`, from whoever has it. Raises DigestMismatch, Aborted."""
        while True:
            self._feeders.add(source.peer.id)
            try:
                await passage.take(source)
                break
            except PeerUnavailable as error:
                self._supply.fail(source.peer, error)
            finally:
                self._reached[source.peer.id] = source.offset
            try:
                source = await self._supply.resume(source.offset, self._span)
            except NotFound as nobody:
                # What is withheld is not the end: passing it on lets the runtime come back at a later byte.
                await passage.release()
                raise Aborted(f"no holder is left at byte {source.offset}") from nobody
        await passage.finish()

    async def _take_room(self, count: int) -> None:
        """Take memory for `count` bytes, instead of what was taken before. Raises NotFound: there is none in time."""
        means = self._means
        self._give_room_back()
        try:
            async with Deadline(means.limits.first_byte_timeout):
                await means.memory.reserve(count)
        except TimeoutError as error:
            means.metrics.limited.add("relay_memory")
            raise NotFound(f"no memory to collect {self._fetch.digest} in") from error
        self._room = count

    def _give_room_back(self) -> None:
        count, self._room = self._room, 0
        self._means.memory.release(count)

    async def _rest_from_another(self, error: DigestMismatch) -> bytes:
        """As `_end_from_another`, before anything was given out. Raises NotFound."""
        try:
            return await self._end_from_another(error)
        except DigestMismatch as again:
            await self._distrust(passed_on=True)
            raise NotFound(str(again)) from again

    async def _end_from_another(self, error: DigestMismatch) -> bytes:
        """The withheld end, right, from a holder that sent none of it before: the wrong byte may be in it.

        Raises DigestMismatch where that does not help: what was passed on is wrong, or no other holder is left.
        """
        verifier, span, supply = self._verifier, self._span, self._supply
        wrong = bytes(verifier.rewind())
        start = span.stop - len(wrong)
        senders = {peer for peer in self._feeders if self._reached[peer] > start}
        first = set(self._feeders)
        supply.pass_over(senders)
        try:
            while wrong:
                self._feeders.clear()
                await self._take_room(len(wrong))
                end = CollectPipeline(len(wrong), verifier, self._means.hasher.thread())
                try:
                    await self._take(await supply.resume(start, span), end)
                except DigestMismatch:
                    supply.pass_over(self._feeders)
                    if verifier.rewind() == wrong:
                        break  # two say the same of the end: what was passed on is wrong
                else:
                    supply.accuse(senders, certain=len(senders) == 1)
                    return end.data
        except (NotFound, Aborted):
            pass  # there is no other holder, or no room
        finally:
            self._feeders.clear()
            self._feeders |= first
        self._accuse(first)  # not the others: what they sent came behind something that may be wrong
        raise error

    def _accuse(self, feeders: Collection[str]) -> None:
        """What these sent, with what the runtime had before, is wrong. Only who sent all of it is sure to have lied."""
        suspects = self._means.blame.suspects(self._fetch.digest) if self._span.start > 0 else frozenset[str]()
        senders = suspects.union(feeders)
        self._supply.accuse(senders, certain=len(senders) == 1 and (self._span.start == 0 or bool(suspects)))

    def _cut_out(self, data: bytes) -> Span:
        """What the runtime wants of `data`. Raises Unsatisfiable."""
        wanted = self._fetch.wanted
        self.data = data
        if wanted is not None and self._span.is_whole:
            if not wanted.is_within(self._span.size):
                raise self._out_of_range(self._span.size)
            self.narrow(wanted.within(self._span.size))
        return self._span

    async def _is_right_size(self, source: Source, ends: float) -> bool:
        """Compare the size that `source` says with the runtime's, where no manifest told it; fails its peer."""
        supply = self._supply
        if supply.size is not None or source.span.size <= self._fetch.ahead:
            return True
        supply.size = await ingest_size(self._means, self._fetch.digest, ends)
        try:
            supply.check_size(source.peer, source.span)
        except PeerUnavailable as error:
            supply.fail(source.peer, error)
            return False
        return True

    async def _choose_verifier(self, ends: float) -> Verifier:
        span, digest = self._span, self._fetch.digest
        skipped = not self._means.verify and span.length > self._fetch.ahead
        if skipped:
            return Unverified(digest)
        if span.stop < span.size:
            self._means.metrics.unverified.add("part")
            self._tell_of_part(_PART, span.start, span.stop - 1)
            return Unverified(digest)
        if self._supply.in_windows and span.start > 0:
            self._means.metrics.unverified.add("beginning")
            self._tell_of_part(_IN_PARALLEL, span.start)
            return Unverified(digest)
        now = asyncio.get_running_loop().time()
        bound = asyncio.timeout((ends - now) / 2)  # of what is left: the peer, which waits meanwhile, is not to blame
        try:
            async with bound:
                if verifier := await resumed_verifier(digest, span.start, self._means.store):
                    self._resumes = span.start > 0
                    return verifier
            self._means.metrics.unverified.add("beginning")
            self._means.log.info(_UNVERIFIED, digest, f", from byte {span.start} on")
            return Unverified(digest)
        except Exception:  # a stranger's code
            self._means.metrics.unverified.add("beginning")
            if bound.expired():
                self._means.metrics.limited.add("wait_timeout")
                self._means.log.warning(_UNVERIFIED, digest, " in time")
            else:
                self._means.log.exception(_UNVERIFIED, digest, "")
            return Unverified(digest)

    def _tell_of_part(self, message: str, *numbers: int) -> None:
        """Log it; only the first of many parts that follow each other is of interest to an operator."""
        digest = self._fetch.digest
        level = logging.INFO if self._means.turns.is_first_log(digest) else logging.DEBUG
        self._means.log.log(level, message, digest, *numbers)

    async def _distrust(self, *, passed_on: bool) -> None:
        """What came is wrong: let nobody build on what was passed on. Where nothing was, blame who sent it."""
        means, digest = self._means, self._fetch.digest
        await self._supply.disconnect()
        if not passed_on:
            self._accuse(self._feeders)
        self._feeders.clear()
        if not passed_on:
            return
        means.blame.poison(digest)
        await discard_ingest(means, digest)
