"""`Inspector`: finds who has an image, tests whether it arrives, and measures the peers.

It asks the store and the peers as a pull does, but takes no lease, keeps no byte and tells the runtime nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from peili.mirror.errors import NotFound, PeerUnavailable, PeiliError, Unavailable
from peili.mirror.inspection.images import ImageList
from peili.mirror.inspection.lookup import MOST_PEERS, FoundImage, ImageLookup
from peili.mirror.inspection.reading import PartReader
from peili.mirror.oci.requests import Target
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Peer
from peili.mirror.plugins.interfaces import Context
from peili.mirror.plugins.resolver import Resolver
from peili.mirror.resolvers.peers import PeersResolver
from peili.mirror.support.deadlines import Deadline

_TIME = 60.0
"""Seconds that one question may take."""
_AT_ONCE = 2
"""How many questions are answered at the same time."""
_PINGS = 3


class Busy(PeiliError):
    """Too many questions are being answered."""


class Inspector:
    """Answers questions about images and peers. Used on the mirror's loop.

    Every question raises `Busy` if too many are asked at the same time, and `Unavailable` if it takes too long.

    Args:
        context: The mirror's context.
        resolver: The mirror's resolver. Tags that it leaves to upstream are looked up in the store, then at peers.
    """

    def __init__(self, context: Context, resolver: Resolver) -> None:
        self._context = context
        self._reader = PartReader(context)
        self._resolver = resolver
        self._images = ImageLookup(context, self._reader)
        self._list = ImageList(context, self._images)
        self._asked = 0

    async def find(self, target: Target) -> dict[str, Any]:
        """Return who has which part of an image, and what a pull would do, as values for JSON.

        Args:
            target: The manifest of the image; see `parse_image`.

        Raises:
            Busy: See above.
            Unavailable: See above.
        """
        async with self._question():
            image = await self._look_up(target)
        return image.document()

    async def test(self, target: Target) -> dict[str, Any]:
        """Do as `find`, and fetch the first MiB of each part as well. Nothing is kept.

        Each part then has a ``test``: from whom, how many bytes and seconds, or the error.

        Raises:
            Busy: See above.
            Unavailable: See above.
        """
        async with self._question():
            image = await self._look_up(target)
            tests = await asyncio.gather(
                *(self._images.limited(self._reader.sample(each, target)) for each in image.parts)
            )
        document = image.document()
        for part, test in zip(document["parts"], tests, strict=True):
            part["test"] = test
        document["ok"] = image.digest is not None and all(test["error"] is None for test in tests)
        return document

    async def ping(self, name: str | None = None) -> list[dict[str, Any]]:
        """Ask each peer, or only the one with this name, id or URL, three times, and return the times that it took.

        Raises:
            NotFound: No peer is called `name`.
            Busy: See above.
            Unavailable: See above.
        """
        router = self._context.router
        peers = [*router.peers(), *(each.peer for each in router.unreachable())]
        name_of = self._context.client.name_of
        wanted = [each for each in peers if name in {None, each.id, name_of(each), *each.urls}][:MOST_PEERS]
        if name is not None and not wanted:
            raise NotFound(f"no peer is called {name}; `peili status` lists them")
        async with self._question():
            return await asyncio.gather(*(self._images.limited(self._ping(each)) for each in wanted))

    async def images(self) -> dict[str, Any]:
        """Return the images of this host and of its peers, with who has each; see `ImageList.document`.

        Raises:
            Busy: See above.
            Unavailable: See above; or the store doesn't answer.
        """
        async with self._question():
            return await self._list.document()

    async def _look_up(self, target: Target) -> FoundImage:
        own = (self._resolver, type(self._resolver).__name__)
        other = PeersResolver()
        async with other.run(self._context):
            return await self._images.look_up(target, (own, (other, "this host's store or a peer")))

    @asynccontextmanager
    async def _question(self) -> AsyncGenerator[None]:
        if self._asked >= _AT_ONCE:
            raise Busy("other questions are being answered; ask again in a moment")
        self._asked += 1
        try:
            async with Deadline(_TIME):
                yield
        except TimeoutError as error:
            raise Unavailable(f"no answer within {_TIME:g} s") from error
        finally:
            self._asked -= 1

    async def _ping(self, peer: Peer) -> dict[str, Any]:
        client, timeout = self._context.client, self._context.limits.lookup_timeout
        times: list[float] = []
        error, identity = None, None
        for _ in range(_PINGS):
            try:
                head = await client.head(peer, "/v2/", timeout=timeout)
            except PeerUnavailable as failure:
                error = str(failure)
                break
            contact = client.contact(peer)
            if contact is not None and contact.round_trip is not None:
                times.append(contact.round_trip)
            identity = head.header(IDENTITY_HEADER)
            error = _ping_problem(peer, head.status, identity)
        return {
            "id": peer.id,
            "name": client.name_of(peer),
            "urls": list(peer.urls),
            "answers_as": identity,
            "seconds": times,
            "error": error,
        }


def _ping_problem(peer: Peer, status: int, identity: str | None) -> str | None:
    if identity is None:
        return f"something else than peili answers ({status})"
    if status != 200:
        return f"it answers {status}" + (": its door is closed to this host" if status == 403 else "")
    is_named = peer.id not in peer.urls  # otherwise its id is not known in advance
    return f"it answers as {identity}" if is_named and identity != peer.id else None
