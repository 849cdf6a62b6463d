"""Who asks: what is kept of an Authorization header. It is never enough to use it again. No I/O."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import Any, cast

from peili.mirror.oci.requests import DENIED, HTTPError
from peili.mirror.support.fingerprints import Fingerprints

_MOST_HEADER = 16 * 1024
_MOST_CLAIMS = 64 * 1024
_LATEST = 2.0**40
"""Seconds since 1970. A later expiry is not believed."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What a request shows to prove who asks.

    Attributes:
        key: A salted hash of the header. It means nothing after a restart.
        header: The Authorization header; None for a request without rights. Kept no longer than the request.
        expires: When the token expires, in seconds since 1970; None if it does not say.
        is_basic: Whether the header has a user and a password, and not a token.
    """

    key: bytes
    header: str | None = field(default=None, repr=False)
    expires: float | None = None
    is_basic: bool = False

    @property
    def is_anonymous(self) -> bool:
        """Whether the request has no rights of its own."""
        return self.header is None


ANYBODY = Credential(b"")
"""What a request without rights shows."""


class Credentials:
    """Recognises credentials by hashes, with a salt that exists only in the memory of this process."""

    def __init__(self) -> None:
        self._fingerprints = Fingerprints()

    def of(self, header: str | None) -> Credential:
        """Return the credential in an Authorization header, or that of a request without one.

        Raises:
            HTTPError: 403, no registry could be asked with this header. That must not look like an outage.
        """
        if header is None or not (text := header.strip()):
            return ANYBODY
        if len(text) > _MOST_HEADER or not (text.isascii() and text.isprintable()):
            raise HTTPError(403, DENIED, f"an Authorization header has at most {_MOST_HEADER} printable characters")
        key = self._fingerprints.of(text)
        scheme, _, value = text.partition(" ")
        if scheme.lower() == "basic":
            return Credential(key, text, is_basic=True)
        return Credential(key, text, expiry_of(value.strip()))


def expiry_of(token: str) -> float | None:
    """Return when a JSON Web Token expires, by its claim ``exp``, which nobody has verified; None if it has none."""
    parts = token.split(".")
    if len(parts) != 3 or len(parts[1]) > _MOST_CLAIMS:
        return None
    try:
        claims: Any = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return None
    expires = cast("dict[str, Any]", claims).get("exp") if isinstance(claims, dict) else None
    if isinstance(expires, bool) or not isinstance(expires, int | float) or not 0 <= expires < _LATEST:
        return None
    return float(expires)
