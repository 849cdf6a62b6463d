"""Checks that relayed content has the right digest, while it is relayed.

A `Verifier` hashes the content of one transfer, in the threads of hash_threads.py.

Who verifies what, and when:

- The relay verifies manifests, and content up to ``limits.verify_ahead``, before its first byte is sent.
- It verifies larger content while it is sent (unless ``verify`` is off), and withholds the last piece until the digest
  is right. It does so whether the content came from whole holders or from hosts that were still receiving it.
- What it passes on to other hosts meanwhile is not verified yet. Each of them verifies in the same way, so a wrong byte
  reaches no runtime as whole content, however long the chain is.
- It can't verify a range that does not reach the end, or whose beginning the store can't show.
- The runtime verifies every digest again when it commits content. The relay removes the runtime's unfinished copy if
  that has a wrong byte, because the runtime would otherwise continue after it.
- If the runtime completes content from upstream after bytes that the relay could not verify, or fetches parts in
  parallel, and does not commit it, the relay hashes what it has as a whole, and removes it if it is wrong.
- What the store has whole was verified by the runtime, and is not verified again when it is sent.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.received import BLOCK, PREFIX_LENGTH

Piece: TypeAlias = bytes | memoryview


class DigestMismatch(Exception):
    """The received bytes are not the content of the digest."""


class FoundWrong(DigestMismatch):
    """The host that sent the bytes has found out that they are wrong."""


class Verifier:
    """The running hash of some content, from its first byte on. It has one owner.

    `feed` returns the piece that may be passed on: always the previous one. The last piece is withheld until `finish`.
    The caller must not change a piece until the verifier has returned it.

    Args:
        digest: The digest that the whole content must have.

    Attributes:
        prefixes: The digests of the beginnings of what was hashed; see `ReceivedBytes.prefixes`.
    """

    def __init__(self, digest: Digest) -> None:
        self._digest = digest
        self.prefixes: list[str] = []
        self._hash = hashlib.new(digest.algorithm)
        self._count = 0
        self._hash_before_withheld, self._count_before_withheld = self._hash.copy(), 0
        self._withheld: Piece = b""

    def seed(self, piece: Piece) -> None:
        """Hash bytes that the runtime already has. Call it before the first `feed`.

        If these bytes are wrong, `finish` fails. `Blame.suspects` then names the peers that may have sent them.
        """
        self._update(piece)

    def feed(self, piece: Piece) -> Piece:
        """Hash the next bytes.

        Returns:
            The bytes that may be passed on now; empty after the first call.
        """
        self._hash_before_withheld, self._count_before_withheld = self._hash.copy(), self._count
        self._update(piece)
        released, self._withheld = self._withheld, piece
        return released

    def release(self) -> Piece:
        """Return the withheld bytes without a check, because the transfer ends before the end of the content."""
        released, self._withheld = self._withheld, b""
        return released

    def rewind(self) -> Piece:
        """Remove the withheld bytes from the hash, so that other bytes can be fed in their place.

        Returns:
            The bytes that were withheld.
        """
        self._hash, self._count = self._hash_before_withheld.copy(), self._count_before_withheld
        del self.prefixes[self._count // BLOCK :]
        return self.release()

    def finish(self) -> Piece:
        """Check the digest after the last piece.

        Returns:
            The withheld last piece.

        Raises:
            DigestMismatch: The content is wrong. The last piece stays withheld.
        """
        if self._count % BLOCK:
            self.prefixes.append(self._prefix())
        if self._hash.hexdigest() != self._digest.encoded:
            raise DigestMismatch(f"content does not have the digest {self._digest}")
        return self.release()

    @property
    def count(self) -> int:
        """The number of bytes that were hashed."""
        return self._count

    def _update(self, piece: Piece) -> None:
        """Hash `piece`, and note the digest at each multiple of `BLOCK`, which costs nearly nothing."""
        rest = memoryview(piece)
        while rest:
            part = rest[: BLOCK - self._count % BLOCK]
            self._hash.update(part)
            self._count += len(part)
            if self._count % BLOCK == 0:
                self.prefixes.append(self._prefix())
            rest = rest[len(part) :]

    def _prefix(self) -> str:
        return self._hash.hexdigest()[:PREFIX_LENGTH]


class Unverified(Verifier):
    """Passes on everything at once, for content that cannot or should not be verified."""

    def feed(self, piece: Piece) -> Piece:
        """Return the same bytes."""
        return piece

    def finish(self) -> Piece:
        """Return nothing, because nothing was withheld."""
        return b""
