"""One answer for the runtime, put together from one or several holders.

Theory of operation: `begin` finds a holder and has the first bytes in hand, so that until then the answer can still be
"go upstream". From then on `pieces` reads on; a holder that fails is replaced by another one at the byte where it
stopped. All is hashed on the way, and the last piece is given out only when the digest is right. When no holder is
left, or the digest is wrong, the transfer is cut, and the runtime comes back for the rest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from peili.mirror.errors import Aborted, NotFound, PeerUnavailable, RouterUnavailable, Unavailable
from peili.mirror.limits import Limits
from peili.mirror.metrics import FAILED, HIT, MISS, WAIT, Metrics
from peili.mirror.peerclient import PeerClient
from peili.mirror.peers import (
    FAILED_REFUSED,
    FAILED_SILENT,
    FAILED_WRONG,
    Feed,
    Holder,
    Lease,
    Peer,
    Upstream,
    Wait,
    Want,
)
from peili.mirror.ranges import ByteRange, Span, Unsatisfiable
from peili.mirror.references import Digest
from peili.mirror.relay.blame import Blame
from peili.mirror.relay.race import first_source
from peili.mirror.relay.source import Source
from peili.mirror.relay.verifier import Mismatch, Unverified, Verifier
from peili.mirror.router import Router
from peili.mirror.store import Store

_LEAST_WAIT = 0.01
"""Seconds: a router that says "wait" without meaning it does not make us spin."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """What is to be fetched: the content of `digest`, which peers have at `path`; all of it, or the part `wanted`.

    Up to `ahead` bytes are collected and verified before the first one is given out.
    """

    digest: Digest
    path: str
    wanted: ByteRange | None
    ahead: int


@dataclass(frozen=True, slots=True)
class Means:
    """What transfers work with."""

    router: Router
    store: Store
    client: PeerClient
    blame: Blame
    limits: Limits
    verify: bool
    log: logging.Logger
    metrics: Metrics


class Transfer:
    """The content of one `Fetch`, from peers. One owner: `begin`, then `pieces`, and `aclose` in any case.

    `data` is all that `pieces` will give, where it was collected ahead.
    """

    def __init__(self, fetch: Fetch, means: Means) -> None:
        self.data: bytes | None = None
        self._fetch = fetch
        self._means = means
        self._failed = means.blame.failed(fetch.digest)
        self._source: Source | None = None
        self._starts = 0
        self._feeders: set[str] = set()
        self._verifier: Verifier = Unverified(fetch.digest)
        self._span = Span.whole(0)
        self._lease = Lease()
        self._reason = "gone"  # why the lease would be released now

    async def begin(self) -> Span:
        """Find a holder; returns what `pieces` will give. Raises NotFound: the runtime shall go upstream."""
        async with self._patience():
            return await self._begin()

    async def _begin(self) -> Span:
        wanted = self._fetch.wanted
        while True:
            source = await self._connect(wanted)
            if wanted and source.span.size <= self._fetch.ahead:
                wanted = None  # small content is taken whole, since only the whole can be verified
                continue
            self._span = source.span
            self._verifier = await self._choose_verifier()
            if source.span.length > self._fetch.ahead or isinstance(self._verifier, Unverified):
                return self._span
            if (data := await self._collect(source)) is not None:
                return self._cut_out(data)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The bytes of what `begin` returned. Raises Aborted where the rest can't be had, or was wrong."""
        if self.data is not None:
            yield self.data
        elif self._source is not None:
            try:
                async with aclosing(self._stream(self._source)) as stream:
                    async for piece in stream:
                        yield piece
                if not isinstance(self._verifier, Unverified):
                    self._feeders.clear()  # what they sent is right
            except Mismatch as error:
                await self._distrust(passed_on=True)
                raise Aborted(str(error)) from error
            finally:
                self._means.blame.suspect(self._fetch.digest, self._feeders)
        self._reason = "done"

    async def aclose(self) -> None:
        """Free the peer's connection and the router's lease."""
        try:
            await self._disconnect()
        finally:
            await self._lease.release(self._reason)

    @asynccontextmanager
    async def _patience(self) -> AsyncGenerator[None]:
        """Bounds a wait without progress. Raises NotFound."""
        try:
            async with asyncio.timeout(self._means.limits.wait_timeout):
                yield
        except TimeoutError as error:
            self._reason = FAILED_SILENT
            self._means.metrics.limited.add("wait_timeout")
            raise NotFound(f"no peer sent {self._fetch.digest} in time") from error

    async def _collect(self, source: Source) -> bytes | None:
        """All of the content, verified; None where it was wrong and another holder shall be tried."""
        data = bytearray()
        try:
            async with aclosing(self._stream(source)) as stream:
                async for piece in stream:
                    data += piece
        except Mismatch as error:
            await self._distrust(passed_on=self._span.start > 0)
            if self._span.start > 0:
                raise NotFound(str(error)) from error
            return None
        except Aborted as error:
            raise NotFound(str(error)) from error
        return bytes(data)

    def _cut_out(self, data: bytes) -> Span:
        wanted = self._fetch.wanted
        self.data = data
        if wanted is not None and self._span.is_whole:
            try:
                self._span = wanted.within(self._span.size)
            except Unsatisfiable as error:
                raise NotFound(str(error)) from error
            self.data = data[self._span.start : self._span.stop]
        return self._span

    async def _stream(self, source: Source) -> AsyncGenerator[bytes, None]:
        """The bytes of the span from whoever has them, the end only when all are right. Raises Mismatch, Aborted."""
        offset = handed = self._span.start
        while offset < self._span.stop:
            try:
                piece = await source.read()
            except PeerUnavailable as error:
                self._note_failure(source.peer, error)
                try:
                    source = await self._resume(offset)
                except NotFound as nobody:
                    # What is withheld is not the end: passing it on lets the runtime come back at a later byte.
                    yield self._verifier.release()
                    raise Aborted(f"no holder is left at byte {offset}") from nobody
                continue
            self._feeders.add(source.peer.id)
            offset += len(piece)
            passed = self._verifier.feed(piece)
            yield passed
            handed += len(passed)
            self._lease.progress(handed)
        yield self._verifier.finish()
        self._lease.progress(offset)

    async def _choose_verifier(self) -> Verifier:
        span, digest = self._span, self._fetch.digest
        skipped = not self._means.verify and span.length > self._fetch.ahead
        if skipped or span.stop < span.size:
            return Unverified(digest)
        return await Verifier.seeded(digest, span.start, self._means.store) or Unverified(digest)

    async def _resume(self, offset: int) -> Source:
        """Go on at byte `offset` with another holder. Raises NotFound."""
        async with self._patience():
            while True:
                source = await self._connect(ByteRange(offset, self._span.stop - 1))
                if source.span.size == self._span.size:
                    return source
                # One of the two is wrong about the size, and the digest will tell which; put together they can't be.
                error = PeerUnavailable(f"peer {source.peer.id} has another size for this digest", FAILED_REFUSED)
                self._note_failure(source.peer, error)

    async def _connect(self, wanted: ByteRange | None) -> Source:
        """The next holder's answer, first bytes in hand. Raises NotFound."""
        await self._disconnect()
        limits = self._means.limits
        while self._starts < limits.restarts:
            self._starts += 1
            holders = await self._holders(wanted.first or 0 if wanted else 0)
            self._source = await first_source(
                holders, lambda holder: self._open(holder, wanted), self._note_failure, limits.hedge_delay
            )
            if self._source is not None:
                return self._source
        self._means.metrics.limited.add("restarts")
        raise NotFound(f"no peer would send {self._fetch.digest}")

    async def _open(self, holder: Holder, wanted: ByteRange | None) -> Source:
        means, fetch = self._means, self._fetch
        return await Source.open(
            means.client, holder.peer, fetch.path, fetch.digest, wanted=wanted, limits=means.limits
        )

    async def _holders(self, offset: int) -> tuple[Holder, ...]:
        """Whom to ask now, waiting as long as the router says. Raises NotFound."""
        while True:
            match await self._advice(Want(self._fetch.digest, offset, dict(self._failed))):
                case Wait(until):
                    await asyncio.sleep(max(_LEAST_WAIT, until - asyncio.get_running_loop().time()))
                case Upstream(lease):
                    await self._take(lease)
                    self._reason = "done"  # the runtime does as it was advised
                    raise NotFound(f"no peer has {self._fetch.digest}")
                case Feed(holders, lease):
                    await self._take(lease)
                    if usable := tuple(each for each in holders if each.peer.id not in self._failed):
                        return usable
                    raise NotFound(f"no other peer has {self._fetch.digest}")

    async def _advice(self, want: Want) -> Feed | Wait | Upstream:
        """What the router says. Raises NotFound."""
        metrics, began = self._means.metrics, time.monotonic()
        result = FAILED
        try:
            advice = await self._means.router.acquire(want)
            result = HIT if isinstance(advice, Feed) else WAIT if isinstance(advice, Wait) else MISS
        except RouterUnavailable as error:
            raise NotFound(str(error)) from error
        except Exception as error:  # a stranger's code, whose failure must not make a pull worse
            self._means.log.exception("%s: the router failed", self._fetch.digest)
            raise NotFound("the router failed") from error
        finally:
            metrics.lookups.add(result)
            metrics.lookup_seconds.add(time.monotonic() - began)
        return advice

    async def _take(self, lease: Lease) -> None:
        """Follow `lease` from now on. A router that is asked twice may lend the same one twice."""
        if lease is self._lease:
            return
        (left, self._lease), (reason, self._reason) = (self._lease, lease), (self._reason, "gone")
        await left.release(reason)

    async def _disconnect(self) -> None:
        if self._source is not None:
            await self._source.aclose()
            self._source = None

    def _note_failure(self, peer: Peer, error: PeerUnavailable) -> None:
        self._failed[peer.id] = self._reason = error.reason
        self._means.blame.record(self._fetch.digest, peer.id, error.reason)
        level = logging.WARNING if error.reason == FAILED_WRONG else logging.INFO
        self._means.log.log(level, "%s: passed over: %s", self._fetch.digest, error)

    async def _distrust(self, *, passed_on: bool) -> None:
        """What came is wrong: ask none of those who sent it again, and let nobody build on what was passed on."""
        means, digest = self._means, self._fetch.digest
        await self._disconnect()
        self._reason = FAILED_WRONG
        for peer_id in sorted(self._feeders | means.blame.suspects(digest)):
            self._failed[peer_id] = FAILED_WRONG
            means.blame.record(digest, peer_id, FAILED_WRONG)
            means.log.warning("%s: peer %s sent wrong bytes; quarantined for this blob", digest, peer_id)
        self._feeders.clear()
        if not passed_on:
            return
        means.blame.poison(digest)
        try:
            if await means.store.discard(digest):
                means.log.warning("%s: removed the runtime's unfinished copy, which was wrong", digest)
        except Unavailable as error:
            means.log.warning("%s: the runtime's unfinished copy is wrong and could not be removed: %s", digest, error)
