"""Hashes content that goes by and keeps back its end until the digest is known to be right."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TypeAlias

from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.limits import MIB
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.interfaces import Store

Piece: TypeAlias = bytes | memoryview


class Mismatch(Exception):
    """What came is not the content of the digest."""


class Verifier:
    """The running hash of one content, from its first byte on. One owner.

    `feed` gives back what may be passed on: always the piece before, so that the last one is withheld until `finish`.
    A piece must not change until it was given back.
    """

    def __init__(self, digest: Digest) -> None:
        self._digest = digest
        self._hash = hashlib.new(digest.algorithm)
        self._before = self._hash.copy()  # without the withheld bytes
        self._withheld: Piece = b""

    def feed(self, piece: Piece) -> Piece:
        """Take the next bytes; returns those that may be passed on now (none at first)."""
        self._before = self._hash.copy()
        self._hash.update(piece)
        passed, self._withheld = self._withheld, piece
        return passed

    def release(self) -> Piece:
        """The withheld bytes, given up unverified: for a transfer that is cut before its end."""
        passed, self._withheld = self._withheld, b""
        return passed

    def rewind(self) -> Piece:
        """Forget the withheld bytes, so that others can be fed in their place; returns them."""
        self._hash = self._before.copy()
        return self.release()

    def finish(self) -> Piece:
        """All has come: the withheld end. Raises Mismatch."""
        if self._hash.hexdigest() != self._digest.encoded:
            raise Mismatch(f"content does not have the digest {self._digest}")
        return self.release()

    @classmethod
    async def seeded(cls, digest: Digest, offset: int, store: Store) -> Verifier | None:
        """A verifier for content from byte `offset` on: what the runtime has up to there is read back from its store.

        None where the store can't show it. Hashes off the loop.
        """
        verifier = cls(digest)
        if offset == 0:
            return verifier
        try:
            async with await store.open(digest, partial=True) as content:
                if content.available < offset:
                    return None  # a part from further on: reading what is there would be in vain
                buffer = memoryview(bytearray(MIB))
                done = 0
                while done < offset:
                    count = await content.readinto(done, buffer[: min(MIB, offset - done)])
                    if count == 0:
                        return None
                    await asyncio.to_thread(verifier._hash.update, buffer[:count])
                    done += count
        except (NotFound, Aborted, Unavailable):
            return None
        return verifier


class Unverified(Verifier):
    """Passes everything on at once, for what can't or shall not be verified."""

    def feed(self, piece: Piece) -> Piece:
        """The same bytes."""
        return piece

    def finish(self) -> Piece:
        """Nothing was withheld."""
        return b""
