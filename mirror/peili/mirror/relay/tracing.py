"""Finds out between which two hosts a wrong byte entered content in flight.

Each host on the way compares what it received with what its feeder received (peer_api/received.py). At the first link
where they differ, one of the two hosts changed a byte, or lies. Nobody else can know which one, so both are barred from
feeding others with this content while they receive it, and no other host is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from peili.mirror.errors import FailureReason, PeerUnavailable, Unavailable
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.keys import MAX_PATH
from peili.mirror.peer_api.messages import MAX_MESSAGE
from peili.mirror.peer_api.peers import Peer
from peili.mirror.peer_api.received import BLOCK, ReceivedBytes, parse_received, received_path
from peili.mirror.plugins.acquiring import Feed, LeaseEnd, Upstream, Want
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.interfaces import Context
from peili.mirror.relay.leases import LOOKUP_FACTOR, LeaseReleases
from peili.mirror.relay.state import RelayState
from peili.mirror.support.deadlines import Deadline

_ANSWER_TIMEOUT = 10.0
"""Seconds for one answer: a host whose runtime fetched from upstream reads its file for it."""
_TRACE_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Link:
    """Two hosts between which a wrong byte entered.

    Attributes:
        upper: The id of the host that was read from; None means upstream.
        lower: The id of the host that read from it.
    """

    upper: str | None
    lower: str

    def __str__(self) -> str:
        return f"between {self.upper or 'upstream'} and {self.lower}"


async def trace_wrong_byte(digest: Digest, received: ReceivedBytes, peers: Sequence[Peer], state: RelayState) -> None:
    """Find out where a wrong byte entered, and bar the two hosts. If this host is one of them, tell the router.

    If it is not found out, because a host on the way does not answer or has forgotten, nobody is barred.

    Args:
        digest: The content.
        received: What this host received.
        peers: The peers that this host read from.
        state: The relay's state, which remembers the two hosts.
    """
    context = state.context
    try:
        async with Deadline(_TRACE_TIMEOUT):
            link = await _Trace(digest, peers, context).run(received)
    except TimeoutError:
        link = None
    if link is None:
        context.log.warning("%s: it was not found out where the wrong byte entered", digest)
        return
    context.log.warning("%s: a wrong byte entered %s", digest, link)
    state.blame.bar_link(digest, {link.lower, link.upper or link.lower} - {context.identity})
    if link.lower == context.identity and link.upper is not None:
        await _report(digest, link.upper, context, state.releases)


async def ask_suspects(digest: Digest, peer_ids: Collection[str], size: int | None, state: RelayState) -> None:
    """Ask whole holders that may have sent wrong bytes what they have. One whose own copy is wrong is quarantined.

    A holder that is asked reads its copy. So it notices itself that it is damaged, and other hosts do not get it.

    Args:
        digest: The content.
        peer_ids: The ids of the holders.
        size: The size of the content in bytes, if it is known.
        state: The relay's state, which remembers the holders.
    """
    context = state.context
    peers = [peer for peer in context.router.peers() if peer.id in peer_ids]
    for peer, attempts in zip(peers, await _ask_all(digest, peers, context), strict=True):
        if size is not None and attempts and _is_damaged(attempts[-1], digest, size):
            _quarantine_damaged(digest, peer.id, state)


def _quarantine_damaged(digest: Digest, peer_id: str, state: RelayState) -> None:
    """Quarantine a holder whose copy is damaged, unless it is quarantined already: each quarantine is counted once."""
    if state.blame.is_quarantined(digest, peer_id):
        state.log.info("%s: the copy of peer %s is damaged", digest, peer_id)
        return
    state.log.warning("%s: the copy of peer %s is damaged; it is quarantined for this blob", digest, peer_id)
    state.blame.record(digest, peer_id, FailureReason.WRONG)


async def _ask_all(digest: Digest, peers: Sequence[Peer], context: Context) -> Sequence[Sequence[ReceivedBytes]]:
    return await asyncio.gather(*(_fetch_received(digest, peer, context) for peer in peers))


async def was_found_wrong(digest: Digest, received: ReceivedBytes, feeder: Peer, context: Context) -> bool:
    """Return whether `feeder` broke off because it found out that the bytes which it passed on are wrong.

    Args:
        digest: The content.
        received: What this host received, the last part from `feeder`.
        feeder: The peer.
        context: The mirror's context, with the relay's log.
    """
    ours = tuple(received.prefixes)
    # Several attempts of the feeder may have begun with these bytes. What it passed on last is of the last one.
    for theirs in reversed(await _fetch_received(digest, feeder, context, is_urgent=True)):
        if tuple(theirs.prefixes[: len(ours)])[-1:] == ours[-1:]:
            return theirs.is_wrong
    return False


async def _fetch_received(
    digest: Digest, peer: Peer, context: Context, *, is_urgent: bool = False
) -> Sequence[ReceivedBytes]:
    """Ask a host what it received. Return nothing if it does not say so.

    If it `is_urgent`, because a transfer stands still meanwhile, the host need not read its store for the answer.
    """
    timeout = context.limits.lookup_timeout if is_urgent else _ANSWER_TIMEOUT
    path = received_path(digest, reads_store=not is_urgent)
    try:
        head, data = await context.client.request("GET", peer, path, None, timeout=timeout, max_response=MAX_MESSAGE)
        return parse_received(data) if head.status == 200 else ()
    except (PeerUnavailable, ValueError) as error:
        context.log.info("%s: peer %s does not say what it received: %s", digest, peer.id, error)
        return ()


async def _report(digest: Digest, upper: str, context: Context, releases: LeaseReleases) -> None:
    """Let the router bar both ends of the link. The holders in its answer are not used."""
    want = Want(digest, failed={upper: FailureReason.WRONG}, accepts_in_flight=True)
    seconds = LOOKUP_FACTOR * context.limits.lookup_timeout + context.router.gather_time
    try:
        answer = await call(
            lambda: context.router.acquire(want),
            context,
            "the report of a wrong byte",
            about=digest,
            limit="lookup_timeout",
            seconds=seconds,
            allowed=(Unavailable,),
        )
    except Unavailable as error:
        context.log.info("%s: the wrong byte could not be reported: %s", digest, error)
        return
    if isinstance(answer, Feed | Upstream):
        await releases.release(answer.lease, LeaseEnd.GONE, digest)


class _Trace:
    """Goes from host to host, towards the root."""

    def __init__(self, digest: Digest, peers: Sequence[Peer], context: Context) -> None:
        self._digest = digest
        self._peers = {peer.id: peer for peer in (*context.router.peers(), *peers)}
        self._context = context
        self._answers: dict[str, Sequence[ReceivedBytes]] = {}

    async def run(self, received: ReceivedBytes) -> Link | None:
        """Return the link where the bytes that this host received were changed; None if it is unknown."""
        lower = self._context.identity
        for _ in range(MAX_PATH):
            upper = await self._follow_short(received)
            for start, stop, source in _segments(received):
                if source is None:
                    if upper is None and start == 0:
                        return Link(None, lower)
                    continue  # its beginning came from others, and may be wrong, too
                attempts = await self._ask(source)
                equal = [each for each in attempts if _is_equal(received, each, stop)]
                if not equal and any(_was_changed(received, each, start, stop) for each in attempts):
                    return Link(source, lower)
                upper = (source, equal[-1]) if equal else None
            if upper is None:
                return None
            lower, received = upper
        return None

    async def _follow_short(self, received: ReceivedBytes) -> tuple[str, ReceivedBytes] | None:
        """Return the last feeder, and what it received, if too few bytes came from it to compare them.

        Only if the feeder itself has found out that its bytes are wrong.
        """
        source = received.sources[-1][1] if received.sources else None
        if source is None or received.prefixes:
            return None
        wrong = [each for each in await self._ask(source) if each.is_wrong]
        return (source, wrong[-1]) if wrong else None

    async def _ask(self, peer_id: str) -> Sequence[ReceivedBytes]:
        """Ask a host what it received. Return nothing if it does not say so."""
        if peer_id not in self._answers:
            peer = self._peers.get(peer_id)
            found = () if peer is None else await _fetch_received(self._digest, peer, self._context)
            self._answers[peer_id] = found
        return self._answers[peer_id]


def _is_damaged(received: ReceivedBytes, digest: Digest, size: int) -> bool:
    """Return whether these are all bytes of the content, and have another digest. Of no bytes, nothing is known."""
    is_whole = 0 < len(received.prefixes) == -(-size // BLOCK)
    return is_whole and not received.is_wrong and not digest.encoded.startswith(received.prefixes[-1])


def _segments(received: ReceivedBytes) -> list[tuple[int, int, str | None]]:
    """Return the parts that came from one host each: the first and last number of blocks, and the id.

    Another host may say that a part begins after its last byte.
    """
    count = len(received.prefixes)
    starts = [(min(start // BLOCK, count), source) for start, source in received.sources]
    ends = [start for start, _ in starts[1:]] + [count]
    return [(start, end, source) for (start, source), end in zip(starts, ends, strict=True) if end > start]


def _is_equal(lower: ReceivedBytes, upper: ReceivedBytes, stop: int) -> bool:
    """Return whether `upper` has the same bytes as `lower` up to the end of a part."""
    return len(upper.prefixes) >= stop and upper.prefixes[stop - 1] == lower.prefixes[stop - 1]


def _was_changed(lower: ReceivedBytes, upper: ReceivedBytes, start: int, stop: int) -> bool:
    """Return whether both had the same bytes before a part, but not after it."""
    had_same = start == 0 or (len(upper.prefixes) >= start and upper.prefixes[start - 1] == lower.prefixes[start - 1])
    return had_same and any(ours != theirs for ours, theirs in zip(lower.prefixes[:stop], upper.prefixes, strict=False))
