"""Which host a peer has shown to be: the names in its certificate, and the id of a host among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

from starlette.requests import HTTPConnection

PEER_NAMES: Final = "peili.peer_names"
"""The key of an ASGI scope below which `serve` stores the names in the verified certificate of the client."""
PEER_IDENTITY: Final = "peili.peer_identity"
"""The key of an ASGI scope below which the peer door stores the id that its `Auth` returned."""
_IDENTITY_PREFIX = "peili:"
_NAME_KINDS = frozenset({"DNS", "URI", "IP Address"})


def certificate_names(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the DNS names, URIs and IP addresses in a verified certificate.

    Args:
        certificate: What `ssl.SSLSocket.getpeercert` returned.
    """
    alternatives = (certificate or {}).get("subjectAltName", ())
    return frozenset(name for kind, name in alternatives if kind in _NAME_KINDS)


def identity_uri(identity: str) -> str:
    """Return the URI that shows the id of a host in its certificate."""
    return _IDENTITY_PREFIX + quote(identity, safe="")


def peer_identity(connection: HTTPConnection) -> str | None:
    """Return the id of the host that sent a request to the peer door.

    It is what the `Auth` of the mirror returned, if that was an id. With `PeerTLS`, it is the id that the verified
    certificate of the host shows. Certificates of a `PeerKeys` show an id. Other certificates show one with a URI such
    as ``peili:node-1``, or as `PeerCertificates` describes. None if no id is known.
    """
    if PEER_IDENTITY in connection.scope:
        return str(connection.scope[PEER_IDENTITY])
    return identity_in(connection.scope.get(PEER_NAMES, ()))  # the `Auth` itself may ask


def has_proven_itself(connection: HTTPConnection) -> bool:
    """Return whether it is known which host sent a request: it has shown a certificate, or the `Auth` knows its id."""
    return PEER_NAMES in connection.scope or PEER_IDENTITY in connection.scope


def identity_in(names: Collection[str]) -> str | None:
    """Return the id that the names in a certificate show; None if they show none."""
    found = [name for name in names if name.startswith(_IDENTITY_PREFIX)]
    return unquote(found[0].removeprefix(_IDENTITY_PREFIX)) if len(found) == 1 else None
