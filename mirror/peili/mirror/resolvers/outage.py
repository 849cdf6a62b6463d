"""What a tag means while its registry does not answer: what hosts remember, else what their images say."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice

from peili.mirror.errors import NotFound, PeerUnavailable, Unavailable
from peili.mirror.oci.references import Reference
from peili.mirror.peer_api.peers import Peer
from peili.mirror.peer_api.tags import KnownTag, TagAnswer, tag_path
from peili.mirror.plugins.interfaces import Context
from peili.mirror.resolvers.told_tags import ToldTags

_MAX_PEERS = 64
_MAX_HOLDERS = 16
_MAX_ANSWER = 16_384


@dataclass(frozen=True, slots=True)
class Guess:
    """What a tag probably means.

    Attributes:
        known: What it means, and since when.
        source: Who says so, for the log.
    """

    known: KnownTag
    source: str


async def own_answer(context: Context, told: ToldTags, reference: Reference) -> TagAnswer:
    """Return what this host knows about a tag. Never raises."""
    image: KnownTag | None = None
    try:
        descriptor = await context.store.resolve(reference)
        at = await context.store.tagged_at(reference)
        image = KnownTag(descriptor, None if at is None else max(time.time() - at, 0.0))
    except (NotFound, Unavailable):
        pass
    return TagAnswer(told.get(reference), image)


async def guess(context: Context, told: ToldTags, reference: Reference) -> Guess | None:
    """Return the newest result that this host remembers, else the newest that a peer remembers, else an image's.

    At most 64 peers are asked, all at once, those first that have an image of this name. Takes at
    most ``limits.lookup_timeout``.
    """
    own = await own_answer(context, told, reference)
    if own.told is not None:
        return Guess(own.told, "this host remembers")
    peers = await _peers(context, reference)
    answers = await asyncio.gather(*(_ask(context, peer, reference) for peer in peers))
    named = [("this host", own), *((f"peer {peer.id}", answer) for peer, answer in zip(peers, answers, strict=True))]
    remembered = (Guess(answer.told, f"{name} remembers") for name, answer in named if answer.told is not None)
    images = (Guess(answer.image, f"{name} has") for name, answer in named if answer.image is not None)
    return _newest(remembered) or _newest(images)


def _newest(guesses: Iterable[Guess]) -> Guess | None:
    return min(guesses, key=lambda each: float("inf") if each.known.age is None else each.known.age, default=None)


async def _peers(context: Context, reference: Reference) -> list[Peer]:
    """Return the peers to ask: first the holders of an image of this name, then others at random."""
    found: dict[str, Peer] = {}
    try:
        async with (
            asyncio.timeout(context.limits.lookup_timeout / 2),
            aclosing(context.router.lookup(reference)) as holders,
        ):
            async for holder in holders:
                found[holder.peer.id] = holder.peer
                if len(found) == _MAX_HOLDERS:
                    break
    except (TimeoutError, Unavailable):
        pass
    peers = list(context.router.peers())
    others = random.sample(peers, min(len(peers), _MAX_PEERS))
    return list(islice({**found, **{each.id: each for each in others}}.values(), _MAX_PEERS))


async def _ask(context: Context, peer: Peer, reference: Reference) -> TagAnswer:
    """Return what a peer knows; nothing if it does not answer."""
    try:
        head, body = await context.client.request(
            "GET", peer, tag_path(reference), None, timeout=context.limits.lookup_timeout / 2, max_response=_MAX_ANSWER
        )
        return TagAnswer.parse(body) if head.status == 200 else TagAnswer()
    except (PeerUnavailable, ValueError) as error:
        context.log.debug("%s: peer %s says nothing: %s", reference, peer.id, error)
        return TagAnswer()
