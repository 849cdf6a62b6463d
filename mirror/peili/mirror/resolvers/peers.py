"""A resolver that asks this host's store, then its peers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection
from contextlib import aclosing, suppress

from typing_extensions import override

from peili.mirror.errors import FailureReason, PeerUnavailable, Unavailable
from peili.mirror.oci.documents import list_of, read_object
from peili.mirror.oci.references import Descriptor, Digest, Reference, is_tag
from peili.mirror.oci.requests import Endpoint, Target
from peili.mirror.peer_api.peers import Peer
from peili.mirror.plugins.interfaces import Context
from peili.mirror.resolvers.local import LocalResolver

_MAX_PEERS = 64
_MAX_LIST = 1 << 20  # bytes of the tags of one peer


class PeersResolver(LocalResolver):
    """Answers from this host's store, else from the first peer that has the tag.

    A tag then means what it meant when that peer pulled or imported the image.
    """

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        with suppress(Unavailable):
            if (descriptor := await super().resolve(reference)) is not None:
                return descriptor
        if (context := self._context) is None:
            return None
        async with aclosing(context.router.lookup(reference)) as holders:
            async for holder in holders:
                try:
                    return await _resolve_at(context, holder.peer, reference)
                except PeerUnavailable as error:
                    context.log.info("%s: passed over: %s", reference, error)
        return None

    @override
    async def tags(self, registry: str, repository: str, stored: Collection[str]) -> Collection[str]:
        """Return the tags of this host and of its peers. Of more than 64 peers, 64 are asked."""
        if (context := self._context) is None or context.covers(registry, repository):
            return ()  # nobody has asked the registry who may have the list
        target = Target(Endpoint.TAGS, registry, repository)
        peers = list(context.router.peers())
        asked = random.sample(peers, min(len(peers), _MAX_PEERS))
        answers = await asyncio.gather(*(_tags_at(context, peer, target) for peer in asked))
        return {*stored, *(tag for answer in answers for tag in answer)}


async def _tags_at(context: Context, peer: Peer, target: Target) -> list[str]:
    """Return the tags that a peer lists; none if it does not answer with a list."""
    try:
        head, body = await context.client.request(
            "GET", peer, target.peer_path, None, timeout=context.limits.lookup_timeout, max_response=_MAX_LIST
        )
        listed = list_of(read_object(body).get("tags")) if head.status == 200 else []
    except (PeerUnavailable, TimeoutError, ValueError) as error:
        context.log.debug("the tags at %s are not known: %r", peer.id, error)
        return []
    return [each for each in listed if isinstance(each, str) and is_tag(each)]


async def _resolve_at(context: Context, peer: Peer, reference: Reference) -> Descriptor:
    """Return what `reference` means at `peer`. Raises PeerUnavailable."""
    target = Target(Endpoint.MANIFEST, reference.registry, reference.repository, tag=reference.tag)
    answer = await context.client.head(peer, target.peer_path, timeout=context.limits.lookup_timeout)
    if answer.status != 200:
        raise PeerUnavailable(f"peer {peer.id} answered {answer.status}", FailureReason.REFUSED)
    headers = answer.headers
    try:
        digest = Digest(headers.get("docker-content-digest", ""))
        return Descriptor(headers.get("content-type", ""), digest, int(headers.get("content-length", "")))
    except ValueError as error:
        problem = f"peer {peer.id} sent no valid descriptor of {reference}: {error}"
        raise PeerUnavailable(problem, FailureReason.WRONG) from error
