"""A resolver that asks this host's store, then its peers."""

from __future__ import annotations

from contextlib import aclosing, suppress

from typing_extensions import override

from peili.mirror.errors import FailureReason, PeerUnavailable, Unavailable
from peili.mirror.oci.references import Descriptor, Digest, Reference
from peili.mirror.oci.requests import Endpoint, Target
from peili.mirror.peer_api.peers import Peer
from peili.mirror.plugins.interfaces import Context
from peili.mirror.resolvers.local import LocalResolver


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
