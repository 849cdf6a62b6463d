"""The holders of one transfer as rivals: who is asked first, who beside the one that sends, and who takes its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, Protocol, TypeAlias

from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.oci.ranges import ByteRange
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.relay.contest import Contest, Tried, part_to_try, try_out
from peili.mirror.relay.entrants import Entrants
from peili.mirror.relay.means import Means
from peili.mirror.relay.race import NotBetter, Rules, first_prize
from peili.mirror.relay.reputation import HEALTHY, MUCH_FASTER
from peili.mirror.relay.source import Source

_LOOKUPS = 2
"""Times `Limits.lookup_timeout` that a lookup may take for one holder."""

Opener: TypeAlias = Callable[[Holder], Coroutine[Any, Any, Source]]


class KeyLookup(Protocol):
    """The transfer, as its rivals need it."""

    in_windows: bool
    reason: str

    async def open(self, holder: Holder, wanted: ByteRange | None) -> Source:
        """The answer of `holder`. Raises PeerUnavailable."""
        ...

    def fail(self, peer: Peer, error: PeerUnavailable) -> None:
        """`peer` would not do."""
        ...


class Rivals:
    """The races of one transfer of `digest`. `failed` are those that it does not take again. One owner, who calls
    `leave` for each source that it was given. It is not kept here: what refers to each other lives on until it is
    collected.
    """

    def __init__(self, digest: Digest, means: Means, failed: Collection[str]) -> None:
        self._digest = digest
        self._means = means
        self._failed = failed
        self._holders: tuple[Holder, ...] = ()
        self._better: Peer | None = None  # whom to go on with
        self._contest: Contest | None = None

    def usable(self, holders: Sequence[Holder]) -> tuple[Holder, ...]:
        """Those of `holders` that may be taken, after the one that has shown to be better than the last source."""
        better = self._better
        first = () if better is None else (Holder(better, complete=True),)
        others = (each for each in holders if better is None or each.peer.id != better.id)
        return tuple(each for each in (*first, *others) if each.peer.id not in self._failed)

    async def first(
        self, holders: tuple[Holder, ...], asker: KeyLookup, opener: Opener, tried: ByteRange | None
    ) -> Source | None:
        """What `opener` gives for the first of `holders`, or of those that are found later; None where all failed.

        `tried` is what those have to send before that which are not well; None: nothing.
        """
        self._holders, better = holders, self._better
        self._better = None
        is_alone = len(holders) == 1

        async def begin(holder: Holder) -> Source:
            is_well = holder.peer == better or self._means.health.rank(holder.peer.id) == HEALTHY
            if not (is_well or is_alone or tried is None):
                await self._show(asker, holder, tried)
            return await opener(holder)

        return await first_prize(self._entrants(first=better), begin, self._rules(asker, beside=False))

    def watch(self, source: Source, asker: KeyLookup) -> None:
        """Try others where `source` hesitates, until `leave`."""
        means = self._means
        self._contest = Contest(
            source, means.health, means.limits, means.log, lambda rate: self._try_others(asker, source, rate)
        )

    async def leave(self, source: Source) -> None:
        """`source` is no longer read. Notes how its peer did; whoever is better is asked first then."""
        contest, self._contest = self._contest, None
        health, progress = self._means.health, source.progress()
        if progress is not None and (count := source.offset - source.span.start):
            health.record_rate(source.peer.id, count, progress[1])
        if not source.left:
            health.record_success(source.peer.id, source.started)
        if contest is not None:
            await contest.aclose()
            self._better = contest.winner

    async def _show(self, asker: KeyLookup, holder: Holder, part: ByteRange) -> None:
        """Have `holder` send `part`: more than a first byte. Raises PeerUnavailable."""
        try:
            await self._try(asker, holder, part, 0.0)
        except PeerUnavailable as error:
            if error.reason != FailureReason.REFUSED:  # it may be that it can send the whole only
                raise

    async def _try_others(self, asker: KeyLookup, source: Source, rate: float) -> Tried | None:
        """A holder that sends what comes next from `source` much faster than at `rate`, where there is one."""
        health = self._means.health
        part = part_to_try(source.offset, source.span.stop, health.recent_failures)

        def may_be_better(name: str) -> bool:
            known = health.rate(name)
            return name != source.peer.id and (known is None or known > MUCH_FASTER * rate)

        async def attempt(holder: Holder) -> Tried:
            return await self._try(asker, holder, part, rate, source.span.size)

        return await first_prize(self._entrants(usable=may_be_better), attempt, self._rules(asker, beside=True))

    async def _try(
        self, asker: KeyLookup, holder: Holder, part: ByteRange, rate: float, size: int | None = None
    ) -> Tried:
        """As `try_out`. Raises NotBetter where the content's size is not `size`, too."""
        source = await asker.open(holder, part)
        if size is not None and source.span.size != size:
            await source.aclose()
            raise NotBetter(f"peer {holder.peer.id} has another size for this digest")
        return await try_out(source, rate, self._means.health)

    def _entrants(self, *, first: Peer | None = None, usable: Callable[[str], bool] = lambda _: True) -> Entrants:
        """Those in hand, and those that the router's lookup gives later."""
        means = self._means
        return Entrants(
            self._holders,
            lambda: means.router.lookup(self._digest),
            means.health,
            means.log,
            first=first,
            usable=lambda name: name not in self._failed and usable(name),
            doubted=lambda name: means.blame.is_doubted(self._digest, name),
            timeout=_LOOKUPS * means.limits.lookup_timeout,
        )

    def _rules(self, asker: KeyLookup, *, beside: bool) -> Rules:
        means = self._means

        def failed_beside(peer: Peer, error: PeerUnavailable) -> None:
            if error.reason == FailureReason.BUSY:
                means.health.record_failure(peer.id, error.reason)  # it may do later, should the one that sends fail
                return
            reason = asker.reason
            asker.fail(peer, error)
            asker.reason = reason  # the lease is as good as it was

        def hesitated(peer: Peer) -> None:
            if not asker.in_windows:  # it may have been its turn that was waited for
                means.health.record_hesitation(peer.id)
                means.log.info("%s: peer %s hesitated; another was faster", self._digest, peer.id)

        return Rules(
            failed=failed_beside if beside else asker.fail,
            hesitated=hesitated,
            patience=means.health.hedge_delay(),
            hedge_delay=means.limits.hedge_delay,
            log=means.log,
            beside=beside,
        )
