"""Checks that relayed content is right: its digest while it is relayed, and its size if that is known.

A `Verifier` hashes the content of one transfer. `HashThreadPool` has the threads for that. `KnownSizes` remembers the
sizes that verified manifests state.

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

import asyncio
import hashlib
import itertools
import os
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, cast

from peili.mirror.limits import KIB, MIB
from peili.mirror.oci.documents import digest_in, list_of, read_object, size_in
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.received import BLOCK, PREFIX_LENGTH

Piece: TypeAlias = bytes | memoryview

_SMALL_PIECE = 32 * KIB
"""A piece of fewer bytes is hashed on the event loop. To wake another thread takes longer than that."""
_RATE_ON_LOOP = 50 * MIB
"""In bytes per second. If pieces come at a lower rate, the event loop hashes them, too: in a twentieth of its time. Of
pieces that come faster, the thread hashes one while the event loop receives the next one.
"""
_MAX_ON_LOOP = 512 * KIB
"""A larger piece is never hashed on the event loop."""
_MAX_THREADS = 4
_MAX_SIZES = 16 * 1024
"""Digests whose size is remembered; each takes about 150 bytes."""
_DESCRIPTOR_LISTS = ("manifests", "layers", "blobs")
_DESCRIPTORS = ("config", "subject")


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


class HashThreadPool:
    """The threads in which one mirror hashes, so that the event loop stays free. hashlib releases the GIL.

    Call `close` at the end. After that, pieces are hashed on the event loop.
    """

    def __init__(self) -> None:
        self._threads = [HashThread() for _ in range(min(_MAX_THREADS, os.cpu_count() or 1))]
        self._next = itertools.cycle(self._threads)

    def thread(self) -> HashThread:
        """Return the next thread in turn. Use the same one for all pieces of a verifier."""
        return next(self._next)

    def close(self) -> None:
        """End the threads after their current work, which takes milliseconds. Idempotent."""
        for thread in self._threads:
            thread.close()


class HashThread:
    """One thread, which hashes pieces in the order in which they are fed.

    A transfer can therefore feed pieces before the previous ones are hashed. Measured: a thread that waits for the
    event loop after each piece is idle half of the time.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="peili hash")
        self._pending = 0
        self._fed_at = float("-inf")

    def feed(self, verifier: Verifier, piece: memoryview) -> asyncio.Future[Piece]:
        """Call ``verifier.feed(piece)`` in the thread, or at once if the thread is idle and would gain nothing.

        Returns:
            A future for the result. `feed` may be called again before it is done.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        small = max(_SMALL_PIECE, min(_MAX_ON_LOOP, (now - self._fed_at) * _RATE_ON_LOOP))
        self._fed_at = now
        if self._executor is None or (not self._pending and len(piece) < small):
            hashed: asyncio.Future[Piece] = loop.create_future()
            hashed.set_result(verifier.feed(piece))
            return hashed
        self._pending += 1
        hashing = loop.run_in_executor(self._executor, verifier.feed, piece)
        hashing.add_done_callback(self._on_hashed)
        return hashing

    def close(self) -> None:
        """End the thread after its current work. Idempotent."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()

    def _on_hashed(self, _: asyncio.Future[Piece]) -> None:
        self._pending -= 1


class KnownSizes:
    """The size of each digest that was verified, or that a verified manifest or index states.

    With a known size, the relay does not depend on the size that a peer states. If two manifests contradict each other,
    neither is believed. Not thread-safe.

    Args:
        max_sizes: The number of digests to remember. The oldest is dropped for a new one.
    """

    def __init__(self, max_sizes: int = _MAX_SIZES) -> None:
        self._max_sizes = max_sizes
        self._stated: OrderedDict[Digest, int | None] = OrderedDict()  # by manifests; None: they contradict each other
        self._verified: OrderedDict[Digest, int] = OrderedDict()

    def add_verified(self, digest: Digest, size: int) -> None:
        """Note that the whole content of `digest` was verified and has `size` bytes, whatever manifests state."""
        self._remember(self._verified, digest, size)

    def add_manifest(self, manifest: bytes) -> None:
        """Note the sizes that `manifest`, which was verified, states for other digests. Never raises."""
        try:
            document = read_object(manifest)
        except ValueError:
            return
        descriptors: list[Any] = [document.get(name) for name in _DESCRIPTORS]
        for name in _DESCRIPTOR_LISTS:
            if isinstance(document.get(name), list):
                descriptors += list_of(document[name])
        for descriptor in descriptors:
            if isinstance(descriptor, dict):
                self._add_descriptor(cast("dict[str, Any]", descriptor))

    def is_verified(self, digest: Digest) -> bool:
        """Return whether the size of `digest` was verified. A size that only a manifest states may be wrong."""
        return digest in self._verified

    def get(self, digest: Digest) -> int | None:
        """Return the size of `digest` in bytes; None if it is not known."""
        return self._verified.get(digest, self._stated.get(digest))

    def _add_descriptor(self, descriptor: dict[str, Any]) -> None:
        if (size := size_in(descriptor)) is None:
            return
        try:
            digest = digest_in(descriptor)
        except ValueError:
            return
        self._remember(self._stated, digest, size if self._stated.get(digest, size) == size else None)

    def _remember(self, sizes: OrderedDict[Digest, Any], digest: Digest, size: int | None) -> None:
        sizes[digest] = size
        sizes.move_to_end(digest)
        while len(sizes) > self._max_sizes:
            sizes.popitem(last=False)
