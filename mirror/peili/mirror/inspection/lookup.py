"""Finds out who has which part of an image."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from peili.mirror.errors import NotFound, PeerUnavailable, PeiliError, Unavailable
from peili.mirror.inspection.parts import MANIFEST, Part, children
from peili.mirror.inspection.reading import PartReader
from peili.mirror.oci.references import Digest, Reference
from peili.mirror.oci.requests import Target
from peili.mirror.peer_api.keys import IN_FLIGHT_HEADER, InFlight, key_path
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.interfaces import Context
from peili.mirror.plugins.resolver import Resolver
from peili.mirror.support.units import bytes_text

_T = TypeVar("_T")
MOST_PEERS = 32
"""How many peers are asked one by one."""
_REQUESTS_AT_ONCE = 8
_MOST_PARTS = 1024
_SOURCES = {
    "store": "from this host's store",
    "peers": "from peers",
    "upstream": "from upstream, because nobody has it",
}


class FoundImage:
    """What was found out about an image.

    Args:
        target: The manifest of the image.
        name_of: Returns the name of a peer for people.

    Attributes:
        digest: The digest of its manifest; None if nobody knows it.
        parts: Its manifests, its configuration and its layers.
        steps: What a pull would do, in sentences.
    """

    def __init__(self, target: Target, name_of: Callable[[Peer], str]) -> None:
        self.digest: Digest | None = None
        self.parts: list[Part] = []
        self.steps: list[str] = []
        self._target = target
        self._name_of = name_of

    def document(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        by_source = {source: [each for each in self.parts if each.source == source] for source in _SOURCES}
        sizes = {source: sum(each.size or 0 for each in parts) for source, parts in by_source.items()}
        steps = [
            f"{_SOURCES[source]}: {len(parts)} part{'s'[: len(parts) != 1]}, {bytes_text(sizes[source])}"
            for source, parts in by_source.items()
            if parts
        ]
        return {
            "image": self._target.name,
            "digest": self.digest,
            "parts": [each.json(self._name_of) for each in self.parts],
            "bytes": sizes,
            "steps": [*self.steps, *steps],
        }


class ImageLookup:
    """Asks the store and the peers for the parts of images. It takes no lease.

    Args:
        context: The mirror's context.
        reader: Reads manifests.
    """

    def __init__(self, context: Context, reader: PartReader) -> None:
        self._context = context
        self._reader = reader
        self._slots = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    async def limited(self, work: Awaitable[_T]) -> _T:
        """Await `work` when few others are under way."""
        async with self._slots:
            return await work

    async def look_up(self, target: Target, resolvers: Sequence[tuple[Resolver, str]]) -> FoundImage:
        """Return who has which part of the image `target`.

        Args:
            target: The manifest of the image.
            resolvers: What resolves a tag, the mirror's resolver first. Each has a name for messages.
        """
        image = FoundImage(target, self._context.client.name_of)
        selection = self._context.selection
        if not selection.allows(target.registry, target.repository, target.tag):
            image.steps.append(f"this mirror is not for {target.name}: the runtime goes upstream for all of it")
        image.digest = target.digest or await self._resolve(target, image, resolvers)
        if image.digest is None:
            return image
        waiting = [Part(MANIFEST, image.digest)]
        while waiting and len(image.parts) < _MOST_PARTS:
            await asyncio.gather(*(self.limited(self._locate(each)) for each in waiting))
            image.parts += waiting
            manifests = [each for each in waiting if each.kind == MANIFEST]
            found = [await self._read_manifest(each, target, image) for each in manifests]
            known = {each.digest for each in image.parts}
            waiting = [child for each in found for child in each if child.digest not in known]
        return image

    async def _resolve(
        self, target: Target, image: FoundImage, resolvers: Sequence[tuple[Resolver, str]]
    ) -> Digest | None:
        if target.registry is None or target.tag is None:
            return None
        reference = Reference(target.registry, target.repository, target.tag)
        for number, (resolver, name) in enumerate(resolvers):
            descriptor = None
            resolve = partial(resolver.resolve, reference)
            with suppress(PeiliError):
                descriptor = await call(resolve, self._context, "the resolver", allowed=(NotFound, Unavailable))
            if descriptor is not None:
                image.steps.append(f"the tag means {descriptor.digest}, says {name}")
                return descriptor.digest
            if number == 0:
                image.steps.append(f"{name} leaves the tag to the registry: the runtime asks it which digest it means")
        image.steps.append("neither this host nor a peer knows the tag: the runtime goes upstream")
        return None

    async def _locate(self, part: Part) -> None:
        """Find out who has `part`."""
        context, digest = self._context, part.digest
        with suppress(NotFound, Unavailable):
            describe = partial(context.store.describe, digest)
            described = await call(describe, context, "the store", allowed=(NotFound, Unavailable))
            part.is_here, part.size = True, described.size
        part.holders = await self.whole_holders(digest)
        if not part.holders:  # otherwise, content in flight does not matter
            peers = [*context.router.peers()][:MOST_PEERS]
            arriving = await asyncio.gather(*(self._in_flight(each, digest) for each in peers))
            part.holders += [each for each in arriving if each is not None]
        part.size = part.size or next((each.size for each in part.holders if each.size is not None), None)

    async def whole_holders(self, digest: Digest) -> list[Holder]:
        """Return the peers that have the whole content; none if the router fails."""
        with suppress(Unavailable):
            async with aclosing(self._context.router.lookup(digest)) as found:
                return [each async for each in found if each.complete]
        return []

    async def _in_flight(self, peer: Peer, digest: Digest) -> Holder | None:
        """Return `peer` as a holder if the content is arriving there."""
        client, timeout = self._context.client, self._context.limits.lookup_timeout
        try:
            head = await client.head(peer, key_path(digest), timeout=timeout, headers={IN_FLIGHT_HEADER: "1"})
            state = InFlight.parse(head.headers) if head.status == 200 else None
        except (PeerUnavailable, ValueError):
            return None
        return None if state is None else Holder(peer, complete=False, available=state.available, size=state.size)

    async def _read_manifest(self, part: Part, target: Target, image: FoundImage) -> list[Part]:
        """Return what a manifest refers to; nothing if nobody who has it could be read."""
        limit = self._context.limits.manifest_size
        data = await self._reader.read(part, replace(target, digest=part.digest, tag=None), limit)
        if data is None or Digest.of(data, part.digest.algorithm) != part.digest:
            image.steps.append(f"the manifest {part.digest} can't be read here: its parts are unknown")
            return []
        return children(data)
