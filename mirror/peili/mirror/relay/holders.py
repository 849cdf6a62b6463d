"""Whom one transfer gets its bytes from: asks the router, races the holders that it names, and takes the next ones when
one would not do. What becomes of the bytes is the transfer's matter.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager

from peili.mirror.errors import FailureReason, NotFound, PeerUnavailable, RouterUnavailable
from peili.mirror.metrics.counters import FAILED, HIT, MISS, WAIT
from peili.mirror.oci.ranges import ByteRange, Span
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.plugins.advice import Feed, Lease, LeaseEnd, Upstream, Wait, Want
from peili.mirror.relay.contest import Outrun, part_to_try
from peili.mirror.relay.means import Fetch, Means
from peili.mirror.relay.rivals import Opener, Rivals
from peili.mirror.relay.source import OutOfRange, Source
from peili.mirror.support.deadlines import Deadline

_LEAST_WAIT = 0.01
"""Seconds: a router that says "wait" without meaning it does not make us spin."""
_FOR_BETTER = 0.75
"""Of ``limits.restarts``: changes of holder that are made for a better one."""
_LOOKUPS = 2
"""How many times `Limits.lookup_timeout` an `acquire` may take: a lookup may ask a last peer when its time is over."""


class Supply:
    """The sources of one `Fetch`, one at a time, and the router's lease for them. One owner, who calls `aclose`.

    `reason` is why the lease would be released now. `size` is how many bytes the content has, where that is known.
    `claims` are the sizes that holders are said to have; `believes` is whether these decide how a holder is asked.
    """

    def __init__(self, fetch: Fetch, means: Means) -> None:
        self.reason: str = LeaseEnd.GONE
        self.size = means.sizes.get(fetch.digest)
        self.claims: set[int] = set()
        self.believes = True
        self.in_windows = False  # whether peers are asked for what continues in windows
        self._fetch = fetch
        self._means = means
        self._failed = means.blame.excluded(fetch.digest)
        self._source: Source | None = None
        self._rivals = Rivals(fetch.digest, means, self._failed)
        self._starts = 0
        self._of_another_size: set[str] = set()
        self._of_unexpected_size: set[str] = set()
        self._out_of_range: dict[str, int] = {}  # peers that have no byte of what was wanted, and how many in all
        self._lease = Lease()
        self._follows = True

    async def begin(self, wanted: ByteRange | None) -> Source:
        """As `connect`, for what the runtime wants. Of small content the whole is asked for: only that can be verified.

        Where nothing says that it is small, the answer may be a part of small content all the same.
        """
        return await self._race(lambda holder: self.open(holder, self._part(holder, wanted)), wanted)

    async def look(self) -> Source:
        """The next holder's answer to HEAD: there is nothing to be read. Raises NotFound."""
        return await self._race(lambda holder: self.open(holder, None, method="HEAD"), None, is_read=False)

    async def connect(self, wanted: ByteRange | None) -> Source:
        """The next holder's answer, first bytes in hand; the one before is closed. Raises NotFound."""
        return await self._race(lambda holder: self.open(holder, wanted), wanted)

    async def more(self, peer: Peer, span: Span) -> Source:
        """`span`, from the same peer if possible, else from another holder. Raises NotFound."""
        await self.disconnect()
        try:
            self._source = await self.open(Holder(peer, complete=True), ByteRange(span.start, span.stop - 1))
        except PeerUnavailable as error:
            self.fail(peer, error)
        else:
            if self._source.span == span:
                self._watch(self._source)
                return self._source
        return await self.resume(span.start, span)

    async def _race(self, opener: Opener, wanted: ByteRange | None, *, is_read: bool = True) -> Source:
        """The source of the first holder that `opener` gets one from, for `wanted`. Raises NotFound."""
        await self.disconnect()
        first = (wanted.first if wanted is not None else 0) if is_read else None
        stop = wanted.last + 1 if wanted is not None and wanted.last is not None else None
        tried = part_to_try(first, stop) if first is not None else None
        while self._starts < self._means.limits.restarts:
            self._starts += 1
            try:
                holders = await self._holders(first or 0)
            except NotFound:
                if not await self._turn_comes():
                    raise
                self._starts -= 1
                continue
            self._source = await self._rivals.first(holders, self, opener, tried)
            if self._source is not None:
                if is_read:
                    self._watch(self._source)
                return self._source
        self._means.metrics.limited.add("restarts")
        raise NotFound(f"no peer would send {self._fetch.digest}")

    def _watch(self, source: Source) -> None:
        """Let others take the place of `source`, while there are enough changes of holder left for when one fails."""
        if self._starts <= self._means.limits.restarts * _FOR_BETTER:
            self._rivals.watch(source, self)

    async def resume(self, offset: int, span: Span) -> Source:
        """Go on with `span` at byte `offset` with another holder. Raises NotFound."""
        async with self.patience():
            while True:
                source = await self.connect(ByteRange(offset, span.stop - 1))
                if source.span.size == span.size:
                    return source
                # One of the two is wrong about the size, and the digest will tell which; put together they can't be.
                error = PeerUnavailable(
                    f"peer {source.peer.id} has another size for this digest", FailureReason.REFUSED
                )
                self.fail(source.peer, error)
                self._of_another_size.add(source.peer.id)

    def forgive(self) -> bool:
        """Let those be asked again that only said another size than the one before; whether there are any."""
        forgiven, self._of_another_size = self._of_another_size, set[str]()
        for peer_id in forgiven:
            self._failed.pop(peer_id, None)
        return bool(forgiven)

    @property
    def is_size_disputed(self) -> bool:
        """Whether a holder was passed over for no more than another size than a manifest says."""
        return bool(self._of_unexpected_size)

    def expect(self, size: int | None) -> bool:
        """The runtime says `size`, of the image that it pulls; what was known may be another image's word. Whether
        holders may be asked again for it.
        """
        out, self._of_unexpected_size = self._of_unexpected_size, set[str]()
        if not out or size is None or size == self.size:
            return False
        self.size = size
        for peer_id in out:
            self._failed.pop(peer_id, None)
        return True

    def end(self) -> int | None:
        """How many bytes the content has, as all those say that have no byte of what was wanted; else None."""
        sizes = set(self._out_of_range.values())
        return sizes.pop() if len(sizes) == 1 else None

    def ask_again(self) -> None:
        """Let those be asked again that have no byte of what was wanted."""
        for peer_id in self._out_of_range:
            self._failed.pop(peer_id, None)
        self._out_of_range.clear()

    def check_size(self, peer: Peer, span: Span) -> None:
        """Raises PeerUnavailable where `span`, which `peer` sends, is of content of a size that can't be right."""
        if self._fetch.manifest and span.size > self._fetch.ahead:
            self._means.metrics.limited.add("manifest_size")
            raise PeerUnavailable(
                f"peer {peer.id}: {span.size} bytes are too many for a manifest", FailureReason.REFUSED
            )
        if self.size is None and span.size > self._means.limits.blob_size:
            self._means.metrics.limited.add("blob_size")
            most = f"more than {self._means.limits.blob_size} bytes are not taken"
            raise PeerUnavailable(f"peer {peer.id} says that it has {span.size} bytes; {most}", FailureReason.WRONG)
        if self.size is not None and span.size != self.size:
            # A manifest, as a runtime, says what an image's author wrote. That may be wrong, and is no reason to blame.
            reason = FailureReason.WRONG
            if not self._means.sizes.is_verified(self._fetch.digest):
                reason = FailureReason.REFUSED
                self._of_unexpected_size.add(peer.id)
            expected = f"{self.size} are expected"
            raise PeerUnavailable(f"peer {peer.id} says that it has {span.size} bytes; {expected}", reason)

    def fail(self, peer: Peer, error: PeerUnavailable) -> None:
        """`peer` would not do. It is not taken again, unless another one was only better."""
        if not isinstance(error, OutOfRange) and not (error.reason == FailureReason.BUSY and self._waits_for_others):
            self._means.health.record_failure(peer.id, error.reason)
        if isinstance(error, Outrun):
            self.reason = error.reason
            self._means.metrics.failures.add(error.reason)
            self._means.log.info("%s: left: %s", self._fetch.digest, error)
            return
        self._failed[peer.id] = self.reason = error.reason
        if isinstance(error, OutOfRange):
            self._out_of_range[peer.id] = error.size  # it would do for another range
            return
        self._means.blame.record(self._fetch.digest, peer.id, error.reason)
        level = logging.WARNING if error.reason == FailureReason.WRONG else logging.INFO
        self._means.log.log(level, "%s: passed over: %s", self._fetch.digest, error)

    def quarantine(self, peer_id: str) -> None:
        """A peer that may have sent wrong bytes; it is not taken again for this content for a long time."""
        self._failed[peer_id] = self.reason = FailureReason.WRONG
        self._means.health.record_failure(peer_id, FailureReason.WRONG)
        self._means.blame.record(self._fetch.digest, peer_id, FailureReason.WRONG)
        self._means.log.warning("%s: peer %s sent wrong bytes; quarantined for this blob", self._fetch.digest, peer_id)

    def accuse(self, peer_ids: Collection[str], *, certain: bool) -> None:
        """Among these is who sent wrong bytes; `certain`: that is each of them. None is taken again here."""
        for peer_id in sorted(peer_ids):
            if certain:
                self.quarantine(peer_id)
                continue
            self._failed[peer_id] = self.reason = FailureReason.WRONG
            self._means.blame.doubt(self._fetch.digest, peer_id)
            self._means.log.warning("%s: peer %s may have sent wrong bytes; asked last", self._fetch.digest, peer_id)

    def pass_over(self, peer_ids: Collection[str]) -> None:
        """None of these is taken again here; no blame is recorded."""
        self._failed |= dict.fromkeys(peer_ids, FailureReason.WRONG)
        self.reason = FailureReason.WRONG

    def progress(self, offset: int) -> None:
        """Bytes up to `offset` have been handed to the runtime. A lease that fails is told no more of it."""
        if not self._follows:
            return
        try:
            self._lease.progress(offset)
        except Exception:  # a stranger's code, whose failure must not cut what is right
            self._follows = False
            self._means.log.exception("%s: the router's lease failed to take progress", self._fetch.digest)

    @asynccontextmanager
    async def patience(self) -> AsyncGenerator[float]:
        """Bounds a wait without progress; gives its end, by the loop's clock. Raises NotFound."""
        ends = asyncio.get_running_loop().time() + self._means.limits.wait_timeout
        try:
            async with asyncio.timeout_at(ends):
                yield ends
        except TimeoutError as error:
            self.reason = FailureReason.SILENT
            self._means.metrics.limited.add("wait_timeout")
            raise NotFound(f"no peer sent {self._fetch.digest} in time") from error

    async def disconnect(self) -> None:
        """Close the source in hand, if any."""
        source, self._source = self._source, None
        if source is not None:
            try:
                await self._rivals.leave(source)
            finally:
                await source.aclose()

    async def aclose(self) -> None:
        """Free the peer's connection and the router's lease."""
        try:
            await self.disconnect()
        finally:
            await self._means.releases.give_back(self._lease, self.reason, self._fetch.digest)

    def _part(self, holder: Holder, wanted: ByteRange | None) -> ByteRange | None:
        """What to ask `holder` for: the whole of what is known, or said, to be small."""
        size = self.size
        if size is None and self.believes:
            size = holder.size
        return None if size is not None and size <= self._fetch.ahead else wanted

    async def open(self, holder: Holder, wanted: ByteRange | None, *, method: str = "GET") -> Source:
        """The answer of `holder`, first bytes in hand. Raises PeerUnavailable."""
        means, fetch = self._means, self._fetch
        return await Source.open(
            means.client,
            holder.peer,
            fetch.path,
            fetch.digest,
            wanted=wanted,
            limits=means.limits,
            check=self.check_size,
            parallel=means.turns if self.in_windows and wanted is not None and wanted.first else None,
            method=method,
        )

    @property
    def _waits_for_others(self) -> bool:
        """Whether a holder that is busy may be so with what this host asks it for."""
        return self._fetch.continues and self._means.turns.is_shared(self._fetch.digest)

    async def _turn_comes(self) -> bool:
        """Where holders are busy with what this host asks them for, wait for some of it to end; they may be asked again
        then. Whether that is so. `patience` bounds it.
        """
        busy = [peer_id for peer_id, reason in self._failed.items() if reason == FailureReason.BUSY]
        if not busy or not self._waits_for_others:
            return False
        await self._means.turns.wait_change()
        for peer_id in busy:
            del self._failed[peer_id]
        return True

    async def _holders(self, offset: int) -> tuple[Holder, ...]:
        """Whom to ask now, waiting as long as the router says. Raises NotFound."""
        while True:
            match await self._advice(offset):
                case Wait(until):
                    await asyncio.sleep(max(_LEAST_WAIT, until - asyncio.get_running_loop().time()))
                case Upstream(lease):
                    await self._take(lease)
                    self.reason = LeaseEnd.DONE  # the runtime does as it was advised
                    raise NotFound(f"no peer has {self._fetch.digest}")
                case Feed(holders, lease):
                    await self._take(lease)
                    self.claims.update(each.size for each in holders if each.size is not None)
                    if usable := self._rivals.usable(holders):
                        return usable
                    raise NotFound(f"no other peer has {self._fetch.digest}")

    async def _advice(self, offset: int) -> Feed | Wait | Upstream:
        """What the router says. Raises NotFound."""
        metrics, began = self._means.metrics, time.monotonic()
        advice: object = None
        try:
            advice = await self._ask(Want(self._fetch.digest, offset, dict(self._failed)))
        finally:
            metrics.lookups.add(_result(advice))
            metrics.lookup_seconds.add(time.monotonic() - began)
        if isinstance(advice, Feed | Wait | Upstream):
            return advice
        router = type(self._means.router).__name__
        self._means.log.error("%s: %s.acquire gave %r, not Feed, Wait or Upstream", self._fetch.digest, router, advice)
        raise NotFound("the router gave no advice")

    async def _ask(self, want: Want) -> object:
        """What the router gives, in the time that a lookup may take: one that needs more can say `Wait`.

        Raises NotFound.
        """
        router = self._means.router
        bound = Deadline(_LOOKUPS * self._means.limits.lookup_timeout + router.gather_time)
        try:
            async with bound:
                return await router.acquire(want)
        except RouterUnavailable as error:
            raise NotFound(str(error)) from error
        except Exception as error:  # a stranger's code, whose failure must not make a pull worse
            if not bound.expired():
                self._means.log.exception("%s: the router failed", want.key)
                raise NotFound("the router failed") from error
            self._means.metrics.limited.add("lookup_timeout")
            self._means.log.warning("%s: %s.acquire gave no advice in time", want.key, type(router).__name__)
            raise NotFound("the router gave no advice in time") from error

    async def _take(self, lease: Lease) -> None:
        """Follow `lease` from now on. A router that is asked twice may lend the same one twice."""
        if lease is self._lease:
            return
        (left, self._lease), (reason, self.reason) = (self._lease, lease), (self.reason, LeaseEnd.GONE)
        self._follows = True
        await self._means.releases.give_back(left, reason, self._fetch.digest)


def _result(advice: object) -> str:
    match advice:
        case Feed():
            return HIT
        case Wait():
            return WAIT
        case Upstream():
            return MISS
        case _:
            return FAILED
