"""Reads a manifest, or the beginning of a blob, from this host's store or from a peer. Keeps nothing."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from peili.mirror.client.connection import Response
from peili.mirror.errors import PeerUnavailable, PeiliError
from peili.mirror.inspection.parts import MANIFEST, Part
from peili.mirror.limits import KIB, MIB
from peili.mirror.oci.references import Digest
from peili.mirror.oci.requests import Endpoint, Target
from peili.mirror.peer_api.peers import Peer
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.deadlines import Deadline

_PIECE = 64 * KIB
_SAMPLE = MIB


class PartReader:
    """Reads parts of images.

    Args:
        context: The mirror's context.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    async def read(self, part: Part, target: Target, limit: int) -> bytes | None:
        """Return up to `limit` bytes of a part from a peer that has it whole; None if nobody sends it."""
        if part.is_here:
            with suppress(PeiliError):
                return await self._read_store(part.digest, limit)
        for holder in part.holders:
            if holder.complete:
                with suppress(PeiliError):
                    return await self._read_peer(holder.peer, target, limit)
        return None

    async def sample(self, part: Part, target: Target) -> dict[str, Any]:
        """Fetch the first MiB of a part from the store, else from the first peer that sends it.

        Returns:
            From whom, how many bytes and seconds, and the error, as values for JSON.
        """
        endpoint = Endpoint.MANIFEST if part.kind == MANIFEST else Endpoint.BLOB
        own = replace(target, endpoint=endpoint, digest=part.digest, tag=None)
        tries: list[tuple[str, Callable[[], Awaitable[bytes]]]] = []
        if part.is_here:
            tries.append(("the store", lambda: self._read_store(part.digest, _SAMPLE)))
        tries += [
            (self._context.client.name_of(each.peer), lambda peer=each.peer: self._read_peer(peer, own, _SAMPLE))  # type: ignore[misc]
            for each in part.holders
            if each.complete
        ]
        error = "nobody has it whole: the runtime goes upstream"
        for name, read in tries:
            started = time.monotonic()
            try:
                data = await read()
            except PeiliError as failure:
                error = str(failure)
                continue
            expected = min(_SAMPLE, part.size) if part.size is not None else len(data)
            is_whole = len(data) < _SAMPLE or len(data) == part.size
            is_wrong = is_whole and Digest.of(data, part.digest.algorithm) != part.digest
            problem = "it ended early" if len(data) < expected else "wrong bytes" if is_wrong else None
            if problem is None:
                return {"from": name, "bytes": len(data), "seconds": time.monotonic() - started, "error": None}
            error = f"{name}: {problem}"
        return {"from": None, "bytes": 0, "seconds": None, "error": error}

    async def _read_store(self, digest: Digest, limit: int) -> bytes:
        """Return up to `limit` bytes from this host's store. Raises NotFound, Aborted, Unavailable."""
        store = self._context.store
        content = await call(lambda: store.open(digest), self._context, "the store", allowed=(PeiliError,))
        async with content:
            return await _collect(limit, content.readinto)

    async def _read_peer(self, peer: Peer, target: Target, limit: int) -> bytes:
        """Return up to `limit` bytes from `peer`. Raises PeerUnavailable."""
        limits = self._context.limits
        headers = {"Range": f"bytes=0-{limit - 1}"} if target.endpoint is Endpoint.BLOB else {}
        response = await self._context.client.open(
            "GET", peer, target.peer_path, timeout=limits.first_byte_timeout, headers=headers
        )
        try:
            if response.head.status not in {200, 206}:
                raise PeerUnavailable(f"peer {peer.id} answers {response.head.status}")
            return await _collect(limit, lambda _, buffer: self._read_response(peer, response, buffer))
        finally:
            response.close()

    async def _read_response(self, peer: Peer, response: Response, buffer: memoryview) -> int:
        try:
            async with Deadline(self._context.limits.stall_timeout):
                return await response.readinto(buffer)
        except (TimeoutError, OSError) as error:
            raise PeerUnavailable(f"peer {peer.id}: {str(error) or type(error).__name__}") from error


async def _collect(limit: int, readinto: Callable[[int, memoryview], Awaitable[int]]) -> bytes:
    """Return the first `limit` bytes, or all if there are fewer."""
    data = bytearray()
    piece = memoryview(bytearray(_PIECE))
    while len(data) < limit:
        count = await readinto(len(data), piece[: min(_PIECE, limit - len(data))])
        if not count:
            break
        data += piece[:count]
    return bytes(data)
