"""Whom one transfer gets its bytes from: asks the router, races the holders that it names, and takes the next ones when
one would not do. What becomes of the bytes is the transfer's matter.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

from peili.mirror.errors import NotFound, PeerUnavailable, RouterUnavailable
from peili.mirror.metrics import FAILED, HIT, MISS, WAIT
from peili.mirror.patience import Patience
from peili.mirror.peers import (
    FAILED_REFUSED,
    FAILED_SILENT,
    FAILED_SLOW,
    FAILED_WRONG,
    Feed,
    Holder,
    Lease,
    Peer,
    Upstream,
    Wait,
    Want,
)
from peili.mirror.ranges import ByteRange, Span
from peili.mirror.relay.means import Fetch, Means
from peili.mirror.relay.peer_health import Outrun
from peili.mirror.relay.race import first_source
from peili.mirror.relay.source import Source

_LEAST_WAIT = 0.01
"""Seconds: a router that says "wait" without meaning it does not make us spin."""
_MORE = 16
"""Holders that are looked up besides those that the router named."""
_MUCH_FASTER = 4
"""Times the rate of one holder at which another is worth changing to."""
_LOOKUPS = 2
"""How many times `Limits.lookup_timeout` an `acquire` may take: a lookup may ask a last peer when its time is over."""


class Supply:
    """The sources of one `Fetch`, one at a time, and the router's lease for them. One owner, who calls `aclose`.

    `reason` is why the lease would be released now. `size` is how many bytes the content has, where that is known.
    """

    def __init__(self, fetch: Fetch, means: Means) -> None:
        self.reason = "gone"
        self.size = means.sizes.of(fetch.digest)
        self._fetch = fetch
        self._means = means
        self._failed = means.blame.failed(fetch.digest)
        self._source: Source | None = None
        self._starts = 0
        self._lease = Lease()
        self._follows = True
        self._known: tuple[Holder, ...] = ()
        self._left: set[str] = set()  # those that another was better than

    async def connect(self, wanted: ByteRange | None) -> Source:
        """The next holder's answer, first bytes in hand; the one before is closed. Raises NotFound."""
        await self.disconnect()
        limits = self._means.limits
        while self._starts < limits.restarts:
            self._starts += 1
            holders = await self._holders(wanted.first or 0 if wanted else 0)
            self._source = await first_source(
                holders,
                lambda holder: self._open(holder, wanted),
                self.fail,
                limits.hedge_delay,
                self._means.log,
                later=self._later,
                hesitated=self._hesitated,
            )
            if self._source is not None:
                return self._source
        self._means.metrics.limited.add("restarts")
        raise NotFound(f"no peer would send {self._fetch.digest}")

    async def resume(self, offset: int, span: Span) -> Source:
        """Go on with `span` at byte `offset` with another holder. Raises NotFound."""
        async with self.patience():
            while True:
                source = await self.connect(ByteRange(offset, span.stop - 1))
                if source.span.size == span.size:
                    return source
                # One of the two is wrong about the size, and the digest will tell which; put together they can't be.
                error = PeerUnavailable(f"peer {source.peer.id} has another size for this digest", FAILED_REFUSED)
                self.fail(source.peer, error)

    def check_size(self, peer: Peer, span: Span) -> None:
        """Raises PeerUnavailable where `span`, which `peer` sends, is of content of a size that can't be right."""
        if self.size is None and span.size > self._means.limits.blob_size:
            self._means.metrics.limited.add("blob_size")
            most = f"more than {self._means.limits.blob_size} bytes are not taken"
            raise PeerUnavailable(f"peer {peer.id} says that it has {span.size} bytes; {most}", FAILED_WRONG)
        if self.size is not None and span.size != self.size:
            right = f"{self.size} is right"
            raise PeerUnavailable(f"peer {peer.id} says that it has {span.size} bytes; {right}", FAILED_WRONG)

    def fail(self, peer: Peer, error: PeerUnavailable) -> None:
        """`peer` would not do; it is not taken again."""
        self._means.health.failed(peer.id, error.reason)
        if isinstance(error, Outrun):
            self._left.add(peer.id)
            self.reason = error.reason
            self._means.metrics.failures.add(error.reason)
            self._means.log.info("%s: %s; going on with another", self._fetch.digest, error)
            return
        self._failed[peer.id] = self.reason = error.reason
        self._means.blame.record(self._fetch.digest, peer.id, error.reason)
        level = logging.WARNING if error.reason == FAILED_WRONG else logging.INFO
        self._means.log.log(level, "%s: passed over: %s", self._fetch.digest, error)

    def quarantine(self, peer_id: str) -> None:
        """A peer that may have sent wrong bytes; it is not taken again for this content for a long time."""
        self._failed[peer_id] = self.reason = FAILED_WRONG
        self._means.blame.record(self._fetch.digest, peer_id, FAILED_WRONG)
        self._means.log.warning("%s: peer %s sent wrong bytes; quarantined for this blob", self._fetch.digest, peer_id)

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
            self.reason = FAILED_SILENT
            self._means.metrics.limited.add("wait_timeout")
            raise NotFound(f"no peer sent {self._fetch.digest} in time") from error

    async def disconnect(self) -> None:
        """Close the source in hand, if any."""
        source, self._source = self._source, None
        if source is not None:
            self._note(source)
            await source.aclose()

    async def aclose(self) -> None:
        """Free the peer's connection and the router's lease."""
        try:
            await self.disconnect()
        finally:
            await self._means.releases.give_back(self._lease, self.reason, self._fetch.digest)

    async def _open(self, holder: Holder, wanted: ByteRange | None) -> Source:
        means, fetch = self._means, self._fetch
        return await Source.open(
            means.client,
            holder.peer,
            fetch.path,
            fetch.digest,
            wanted=wanted,
            limits=means.limits,
            check=self.check_size,
            others=lambda rate: self._others(holder.peer.id, rate),
        )

    def _note(self, source: Source) -> None:
        """What `source` says about its peer's health."""
        health, pull = self._means.health, source.pull
        if pull.count:
            health.measured(source.peer.id, pull.count, pull.waited)
        if not source.left and pull.is_good:
            health.succeeded(source.peer.id)

    def _hesitated(self, peer: Peer) -> None:
        """`peer` was not as far as one that was asked later."""
        self._means.health.failed(peer.id, FAILED_SILENT)

    def _avoided(self) -> dict[str, str]:
        """Those that are asked only where nobody else is left, as in `Want.failed`."""
        avoided = self._left | set(self._means.health.resting())
        return {peer_id: FAILED_SLOW for peer_id in avoided if peer_id not in self._failed}

    async def _later(self) -> list[Holder]:
        """Holders that the router has found since it was asked, or did not name then; those to be avoided last."""
        known = {each.peer.id for each in self._known} | set(self._failed) | self._left
        found: list[Holder] = []
        try:
            async with (
                asyncio.timeout(self._means.limits.hedge_delay),
                aclosing(self._means.router.lookup(self._fetch.digest)) as holders,
            ):
                async for holder in holders:
                    if holder.peer.id not in known:
                        known.add(holder.peer.id)
                        found.append(holder)
                    if len(found) >= _MORE:
                        break
        except Exception as error:  # noqa: BLE001 - a stranger's code; what it found is good
            self._means.log.debug("%s: no further holders: %r", self._fetch.digest, error)
        self._known += tuple(found)
        return list(self._means.health.order(found))

    async def _others(self, peer_id: str, rate: float) -> bool:
        """Whether a holder other than `peer_id` is likely to send much faster than `rate`."""
        if self._has_better(peer_id, rate):
            return True
        await self._later()
        return self._has_better(peer_id, rate)

    def _has_better(self, peer_id: str, rate: float) -> bool:
        health = self._means.health
        avoided = {peer_id, *self._failed, *self._avoided()}
        rates = [health.rate(each.peer.id) for each in self._known if each.peer.id not in avoided]
        return any(each is None or each > _MUCH_FASTER * rate for each in rates)

    async def _holders(self, offset: int) -> tuple[Holder, ...]:
        """Whom to ask now, waiting as long as the router says. Raises NotFound."""
        avoided = self._avoided()
        while True:
            match await self._advice(offset, avoided):
                case Wait(until):
                    await asyncio.sleep(max(_LEAST_WAIT, until - asyncio.get_running_loop().time()))
                case Upstream(lease):
                    await self._take(lease)
                    if avoided:
                        avoided = {}  # better a bad one than none
                        continue
                    self.reason = "done"  # the runtime does as it was advised
                    raise NotFound(f"no peer has {self._fetch.digest}")
                case Feed(holders, lease):
                    await self._take(lease)
                    if usable := tuple(each for each in holders if each.peer.id not in self._failed):
                        self._known = usable
                        return self._means.health.order(usable)
                    if avoided:
                        avoided = {}
                        continue
                    raise NotFound(f"no other peer has {self._fetch.digest}")

    async def _advice(self, offset: int, avoided: dict[str, str]) -> Feed | Wait | Upstream:
        """What the router says. Raises NotFound."""
        metrics, began = self._means.metrics, time.monotonic()
        advice: object = None
        try:
            advice = await self._ask(Want(self._fetch.digest, offset, {**avoided, **self._failed}))
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
        bound = Patience(_LOOKUPS * self._means.limits.lookup_timeout + router.gather_time)
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
        (left, self._lease), (reason, self.reason) = (self._lease, lease), (self.reason, "gone")
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
