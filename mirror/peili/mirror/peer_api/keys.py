"""How a host asks a peer whether it has a key, and what the peer answers.

The request is ``HEAD {peer}/_router/keys/{key}``. A host answers 200 if its own store has the whole content of the key,
and 404 otherwise. It never asks other hosts, so a request cannot travel in a circle.

With the header ``Peili-In-Flight: 1``, a host also answers 200 for a digest whose content is still arriving in its
store, if it knows the whole size. A request for the blob with this header is then answered from the first byte on,
while the content grows. Peers that do not know the header answer as without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from peili.mirror.oci.references import Digest, Key
from peili.mirror.peer_api.peers import Holder, Peer

KEYS_ROUTE = "/keys/{key:path}"
"""The route for keys, below the path that the peer door leaves to the router."""
DIGEST_HEADER = "Docker-Content-Digest"
COMPLETE_HEADER = "Peili-Complete"
"""``true`` if the peer has the whole content; ``false`` if it is still arriving."""
IN_FLIGHT_HEADER = "Peili-In-Flight"
"""In a request: ``1`` if the client accepts content that is still arriving, whose bytes are not verified yet."""
AVAILABLE_HEADER = "Peili-Available"
"""How many bytes from the start the peer has, if it does not have the whole content."""
SIZE_HEADER = "Peili-Size"
"""The size of the whole content in bytes. (Content-Length is the length of the response's body, which is empty.)"""

_MAX_SIZE_DIGITS = 18


def key_path(key: Key) -> str:
    """Return the path of the request for `key`, relative to the base URL of the peer."""
    return f"/_router/keys/{quote(str(key), safe='/:')}"


def accepts_in_flight(value: str | None) -> bool:
    """Return whether a request whose `IN_FLIGHT_HEADER` has this value accepts content that is still arriving."""
    return value is not None and value.strip() == "1"


def holder_headers(digest: Digest, size: int, available: int | None = None) -> dict[str, str]:
    """Return the headers of a response that says: this host has content.

    Args:
        digest: The digest of the content.
        size: The size of the whole content in bytes.
        available: How many bytes have arrived so far; None if the content is whole.
    """
    headers = {DIGEST_HEADER: digest, SIZE_HEADER: str(size)}
    return headers | availability_headers(available)


def availability_headers(available: int | None) -> dict[str, str]:
    """Return the headers that say how much of its content a host has: `available` bytes, or all if that is None."""
    if available is None:
        return {COMPLETE_HEADER: "true"}
    return {COMPLETE_HEADER: "false", AVAILABLE_HEADER: str(available)}


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
