"""Tells requesters apart without keeping what they show."""

from __future__ import annotations

import hashlib
import secrets


class Fingerprints:
    """Salted hashes of Authorization headers. The salt exists only in memory: another object makes other hashes."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(32)

    def of(self, authorization: str | None) -> bytes:
        """Return the fingerprint of a header; nothing for a request without one."""
        if not authorization:
            return b""
        return hashlib.blake2b(authorization.encode("utf-8", "replace"), key=self._salt, digest_size=32).digest()
