"""How a host asks a peer for a key, and what the peer answers.

The request is ``HEAD {peer}/_router/keys/{key}``. A host answers 200 if its own store has the whole content of the key,
and 404 otherwise. It never asks other hosts, so a request cannot travel in a circle.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from peili.mirror.oci.references import Descriptor, Digest, Key
from peili.mirror.peer_api.peers import Holder, Peer

KEYS_ROUTE = "/keys/{key:path}"
"""The route for keys, below the path that the peer door leaves to the router."""
DIGEST_HEADER = "Docker-Content-Digest"
COMPLETE_HEADER = "Peili-Complete"
"""``true`` if the peer has the whole content."""
SIZE_HEADER = "Peili-Size"
"""The size of the whole content in bytes. (Content-Length is the length of the response's body, which is empty.)"""

_MAX_SIZE_DIGITS = 18


def key_path(key: Key) -> str:
    """Return the path of the request for `key`, relative to the base URL of the peer."""
    return f"/_router/keys/{quote(str(key), safe='/:')}"


def holder_headers(descriptor: Descriptor) -> dict[str, str]:
    """Return the headers of a response that says: this host has the whole content of `descriptor`."""
    return {DIGEST_HEADER: descriptor.digest, COMPLETE_HEADER: "true", SIZE_HEADER: str(descriptor.size)}


def parse_holder(peer: Peer, key: Key, status: int, headers: Mapping[str, str]) -> Holder | None:
    """Read the response of `peer` to the request for `key`.

    Args:
        peer: The peer that was asked.
        key: The key that it was asked for.
        status: The status code of the response.
        headers: The headers of the response, with names in lower case.

    Returns:
        The peer as a holder; None if it does not have the content, or if the response is not from peili.
    """
    if status != 200 or headers.get(COMPLETE_HEADER.lower()) != "true":
        return None
    if isinstance(key, Digest) and headers.get(DIGEST_HEADER.lower()) != key:
        return None
    size = headers.get(SIZE_HEADER.lower(), "")
    is_number = size.isascii() and size.isdecimal() and len(size) <= _MAX_SIZE_DIGITS
    return Holder(peer, complete=True, size=int(size) if is_number else None)
