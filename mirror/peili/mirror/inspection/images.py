"""Lists the images of this host and of its peers, with who has each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeAlias

from peili.mirror.errors import PeerUnavailable, Unavailable
from peili.mirror.inspection.lookup import MOST_PEERS, ImageLookup
from peili.mirror.oci.references import Digest, Reference
from peili.mirror.peer_api.images import IMAGES_PATH, ImageNames
from peili.mirror.peer_api.messages import MAX_MESSAGE
from peili.mirror.peer_api.peers import Peer
from peili.mirror.plugins.calls import call, has_whole
from peili.mirror.plugins.interfaces import Context

_MOST_LISTED = 256
"""How many images of this host, and how many others, are listed."""

_Image: TypeAlias = tuple[Reference, Digest]


class ImageList:
    """Asks the store and the peers which images they have.

    Args:
        context: The mirror's context.
        lookup: Finds out who has a manifest.
    """

    def __init__(self, context: Context, lookup: ImageLookup) -> None:
        self._context = context
        self._lookup = lookup

    async def document(self) -> dict[str, Any]:
        """Return the images as values for JSON: first the tags of this host, then those that only peers have.

        ``here`` says whether this host has the manifest, maybe without the tag or with another one.
        ``total`` counts them all, as far as they are known. ``asked`` are the names of the peers that were asked, and
        ``silent`` has the reason for each that did not answer.

        Raises:
            Unavailable: The store doesn't answer.
        """
        context = self._context
        found = await call(context.store.images, context, "the store", allowed=(Unavailable,))
        own = [(reference, descriptor.digest) for reference, descriptor in found]
        peers = [*context.router.peers()][:MOST_PEERS]
        names = [context.client.name_of(each) for each in peers]
        answers = list(zip(names, await self._gather([self._ask(each) for each in peers]), strict=True))
        told = [(name, answer) for name, answer in answers if isinstance(answer, ImageNames)]
        others = sorted({image for _, answer in told for image in answer.images} - {*own})
        unnamed = max((answer.total - len(answer.images) for _, answer in told), default=0)
        return {
            "images": [*await self._rows(own, told), *await self._rows(others, told)],
            "total": len(own) + len(others) + unnamed,
            "asked": names,
            "silent": {name: answer for name, answer in answers if isinstance(answer, str)},
        }

    async def _rows(self, images: Sequence[_Image], told: Sequence[tuple[str, ImageNames]]) -> list[dict[str, Any]]:
        listed = images[:_MOST_LISTED]
        here = await self._gather([has_whole(self._context, digest) for _, digest in listed])
        whole = await self._gather([self._lookup.whole_holders(digest) for _, digest in listed])
        having: dict[_Image, set[str]] = {}
        for name, answer in told:
            for image in answer.images:
                having.setdefault(image, set()).add(name)
        rows: list[dict[str, Any]] = []
        for image, is_here, holders in zip(listed, here, whole, strict=True):
            names = having.get(image, set()) | {self._context.client.name_of(each.peer) for each in holders}
            rows.append({"image": str(image[0]), "digest": image[1], "here": is_here is True, "peers": sorted(names)})
        return rows

    async def _gather(self, work: Sequence[Any]) -> list[Any]:
        return await asyncio.gather(*(self._lookup.limited(each) for each in work))

    async def _ask(self, peer: Peer) -> ImageNames | str:
        """Ask a peer which images it has. Return the reason if it doesn't say so."""
        client, timeout = self._context.client, self._context.limits.first_byte_timeout
        try:
            head, data = await client.request("GET", peer, IMAGES_PATH, None, timeout=timeout, max_response=MAX_MESSAGE)
            return ImageNames.parse(data) if head.status == 200 else f"it answers {head.status}"
        except (PeerUnavailable, ValueError) as error:
            return str(error)
