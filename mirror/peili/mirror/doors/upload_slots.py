"""Bounds how many uploads of the peer door run at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager

from peili.mirror.limits import Limits
from peili.mirror.oci.references import Digest
from peili.mirror.oci.requests import TOOMANYREQUESTS, HTTPError


class UploadSlots:
    """Bounds the uploads that run at the same time.

    ``limits.uploads`` in total, ``limits.uploads_per_peer`` per host, ``limits.uploads_per_blob`` per digest. Of
    content that is still arriving, ``limits.in_flight_uploads`` in total, ``limits.children`` per digest. If the bytes
    per second are limited, each upload gets at least ``limits.min_rate``, below which the other host would replace this
    one.

    Args:
        limits: See above.
        limited: Called with the name of the limit for each upload that is refused.
    """

    def __init__(self, limits: Limits, limited: Callable[[str], None]) -> None:
        self._limits = limits
        self._limited = limited
        self._uploads_to: Counter[str] = Counter()
        self._uploads_of: Counter[Digest] = Counter()
        self._children_of: Counter[Digest] = Counter()

    @contextmanager
    def acquire(self, host: str, digest: Digest, *, is_in_flight: bool = False) -> Generator[None]:
        """Hold a slot for an upload of `digest` to `host`.

        Args:
            host: The address of the host.
            digest: The content.
            is_in_flight: Whether it is still arriving.

        Raises:
            HTTPError: 429, all slots are in use.
        """
        limit = self._exhausted_limit(host, digest, is_in_flight=is_in_flight)
        if limit is not None:
            self._limited(limit)
            raise HTTPError(429, TOOMANYREQUESTS, "too many uploads at the same time", {"Retry-After": "1"})
        self._count(host, digest, 1, is_in_flight=is_in_flight)
        try:
            yield
        finally:
            self._count(host, digest, -1, is_in_flight=is_in_flight)
            for counter in (self._uploads_to, self._uploads_of, self._children_of):
                counter += Counter()  # removes the zeros, in place

    def _count(self, host: str, digest: Digest, change: int, *, is_in_flight: bool) -> None:
        self._uploads_to[host] += change
        self._uploads_of[digest] += change
        self._children_of[digest] += change if is_in_flight else 0

    @property
    def in_use(self) -> int:
        """The number of uploads that run now."""
        return self._uploads_to.total()

    @property
    def in_flight(self) -> int:
        """The number of uploads of content that was still arriving when they began."""
        return self._children_of.total()

    def _exhausted_limit(self, host: str, digest: Digest, *, is_in_flight: bool) -> str | None:
        limits, total, to_host = self._limits, self._uploads_to.total(), self._uploads_to[host]
        bounds = [
            ("uploads", total, limits.uploads),
            ("uploads_per_peer", to_host, limits.uploads_per_peer),
            ("uploads_per_blob", self._uploads_of[digest], limits.uploads_per_blob),
            ("upload_rate", total, limits.upload_rate // limits.min_rate),
            ("upload_rate_per_peer", to_host, limits.upload_rate_per_peer // limits.min_rate),
        ]
        if is_in_flight:
            bounds.append(("in_flight_uploads", self._children_of.total(), limits.in_flight_uploads))
            bounds.append(("children", self._children_of[digest], limits.children))
        return next((name for name, count, most in bounds if count >= max(1, most)), None)
