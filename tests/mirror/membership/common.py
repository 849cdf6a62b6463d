"""Keys and limits for the tests of the membership."""

from __future__ import annotations

from peili.mirror import Digest, Limits

KEY = Digest.of(b"a layer")
OTHER = Digest.of(b"another layer")

NO_EXPIRY = Limits(lookup_timeout=10, lookup_ttl=60, miss_ttl=60)
"""Limits for tests in which nothing may expire."""


def fast_limits(**changes: float) -> Limits:
    """Return limits for tests that wait for a timeout or a probe."""
    return Limits(**{"lookup_timeout": 0.5, "backoff_min": 0.05, "backoff_max": 0.1, **changes})  # type: ignore[arg-type]  # all are floats
