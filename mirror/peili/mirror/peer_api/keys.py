"""How a host asks a peer whether it has a key, and what the peer answers.

The request is ``HEAD {peer}/_router/keys/{key}``. A host answers 200 if its own store has the whole content of the key,
and 404 otherwise. It never asks other hosts, so a request cannot travel in a circle.

With the header ``Peili-In-Flight: 1``, a host also answers 200 for a digest whose content is still arriving in its
store, if it knows the whole size. A request for the blob with this header is then answered from the first byte on,
while the content grows. Peers that do not know the header answer as without it. `InFlight` has the headers that
describe content which is still arriving.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from peili.mirror.limits import KIB
from peili.mirror.oci.references import Digest, Key
from peili.mirror.peer_api.peers import Holder, Peer, is_identity

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
PATH_HEADER = "Peili-Path"
"""The way of content that is still arriving: the id of the host that answers, of the host that it reads from, and so
on, to the host whose runtime fetches from upstream. Separated by commas; ``%`` and ``,`` in an id are escaped.
"""
WAITING_HEADER = "Peili-Waiting"
"""Where the next bytes of content that is still arriving come from: ``upstream``, or the escaped id of another host."""
MAX_PATH = 64
"""The largest number of ids in `PATH_HEADER`. A host refuses a longer path."""

_MAX_PATH_LENGTH = 8 * KIB
"""The most characters that a host sends in `PATH_HEADER`: the whole head of a response may have twice as many."""
_UPSTREAM = "upstream"
_UNESCAPED = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "%,")
_MAX_SIZE_DIGITS = 18


@dataclass(frozen=True, slots=True)
class InFlight:
    """How content arrives at a host that does not have the whole of it.

    Attributes:
        available: How many bytes from the start the host has.
        size: The size of the whole content in bytes, if known.
        path: See `PATH_HEADER`. Empty if the host does not state it.
        feeder: The id of the host that it reads from; None if its runtime fetches from upstream, or if it does not say.
    """

    available: int
    size: int | None = None
    path: tuple[str, ...] = ()
    feeder: str | None = None

    def headers(self) -> dict[str, str]:
        """Return the headers of a response that describes the arrival."""
        headers = availability_headers(self.available)
        if self.size is not None:
            headers[SIZE_HEADER] = str(self.size)
        if self.path:
            headers[PATH_HEADER] = _join(self.path[:MAX_PATH])
        headers[WAITING_HEADER] = _UPSTREAM if self.feeder is None else _escape(self.feeder)
        return headers

    def combined_with(self, other: InFlight | None) -> InFlight:
        """Return this with what `other` knows about the same content at the same host: its way, and more bytes."""
        if other is None:
            return self
        size = other.size if self.size is None else self.size
        return InFlight(max(self.available, other.available), size, other.path, other.feeder)

    @classmethod
    def parse(cls, headers: Mapping[str, str]) -> InFlight | None:
        """Read the headers of a response; their names are in lower case.

        Returns:
            None if they do not describe content that is still arriving.

        Raises:
            ValueError: A header is malformed.
        """
        if headers.get(COMPLETE_HEADER.lower()) != "false":
            return None
        available = _parse_count(headers.get(AVAILABLE_HEADER.lower(), ""))
        if available is None:
            raise ValueError(f"{AVAILABLE_HEADER} is not a number of bytes")
        waiting = headers.get(WAITING_HEADER.lower(), _UPSTREAM)
        path = headers.get(PATH_HEADER.lower())
        ids = () if path is None else tuple(_unescape(each.strip(), PATH_HEADER) for each in path.split(","))
        if len(ids) > MAX_PATH:
            raise ValueError(f"{PATH_HEADER} has more than {MAX_PATH} ids")
        return cls(
            available,
            _parse_count(headers.get(SIZE_HEADER.lower(), "")),
            ids,
            None if waiting == _UPSTREAM else _unescape(waiting, WAITING_HEADER),
        )


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
    return Holder(peer, complete=True, size=_parse_count(headers.get(SIZE_HEADER.lower(), "")))


def _parse_count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_SIZE_DIGITS else None


def _join(path: Iterable[str]) -> str:
    """Return a path as a header, without the last ids if they are so long that nobody would read the response."""
    text = ""
    for each in map(_escape, path):
        if len(text) + len(each) + 2 > _MAX_PATH_LENGTH:
            break
        text += f", {each}" if text else each
    return text


def _escape(identity: str) -> str:
    """Return an id as a part of a header. No id becomes the word ``upstream``."""
    return "%75pstream" if identity == _UPSTREAM else quote(identity, safe=_UNESCAPED)


def _unescape(text: str, header: str) -> str:
    identity = unquote(text, errors="strict") if text.isascii() else ""
    if not is_identity(identity):
        raise ValueError(f"{header} has something else than ids")
    return identity
