"""Checks a holder's response to a request for content: is it the requested part of the requested content?"""

from __future__ import annotations

from typing import TypeAlias

from peili.mirror.client.connection import Response, ResponseHead
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.oci.ranges import ByteRange, Span, Unsatisfiable, parse_content_range, parse_unsatisfied_range
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.keys import IN_FLIGHT_HEADER, InFlight
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Peer
from peili.mirror.relay.parallel import PeerRequest, WindowedBody

ResponseBody: TypeAlias = Response | WindowedBody
_MAX_DIGITS = 19
"""A Content-Length with more digits is not a size."""


class OutOfRange(PeerUnavailable):
    """The peer states that it has the content, but that no byte of it is in the requested range.

    Attributes:
        size: The size of the content that the peer states, in bytes.
    """

    def __init__(self, peer: Peer, wanted: ByteRange, size: int) -> None:
        super().__init__(f"peer {peer.id} says that no byte of {size} is in {wanted}", FailureReason.REFUSED)
        self.size = size


def in_flight_headers(identity: str) -> dict[str, str]:
    """Return the headers of a request of the host `identity` that accepts content which is still arriving."""
    return {IN_FLIGHT_HEADER: "1", IDENTITY_HEADER: identity}


def read_in_flight(peer: Peer, head: ResponseHead, identity: str) -> InFlight | None:
    """Read how content arrives at `peer`.

    Args:
        peer: The peer.
        head: Its response.
        identity: The id of this host.

    Returns:
        None if the peer has the whole content.

    Raises:
        PeerUnavailable: The peer gets the content from this host, or its response is malformed.
    """
    try:
        in_flight = InFlight.parse(head.headers)
    except ValueError as error:
        raise PeerUnavailable(f"peer {peer.id}: {error}", FailureReason.REFUSED) from error
    if in_flight is not None and identity in in_flight.path:
        raise PeerUnavailable(f"peer {peer.id} gets the content from this host", FailureReason.CIRCULAR)
    return in_flight


def check_response(
    request: PeerRequest, body: ResponseBody, digest: Digest, wanted: ByteRange | None, identity: str | None
) -> tuple[Span, InFlight | None]:
    """Check a response.

    Args:
        request: What was requested, and from whom.
        body: The response.
        digest: The content.
        wanted: The range that was requested; None for the whole.
        identity: The id of this host, if it accepts content that is still arriving at the peer.

    Returns:
        The bytes that it contains, and how the content arrives at the peer. The latter is None if the peer has the
        whole content.

    Raises:
        PeerUnavailable: The peer does not send the requested bytes.
    """
    peer, head = request.peer, body.head
    in_flight = _check_arrival(peer, head, identity) if identity is not None else None
    length = body.length if request.method == "GET" else _content_length(head)
    return _check_span(peer, head, length, digest, wanted), in_flight


def _check_arrival(peer: Peer, head: ResponseHead, identity: str) -> InFlight | None:
    """Return how content arrives at `peer`; None if it has the whole. Raises PeerUnavailable if it has nothing."""
    if head.status == 404:
        raise PeerUnavailable(f"peer {peer.id} does not receive the content any more", FailureReason.STARVING)
    return read_in_flight(peer, head, identity)


def _content_length(head: ResponseHead) -> int | None:
    """Return the Content-Length of a response to HEAD; None if it is missing or not a size."""
    text = head.header("content-length")
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > _MAX_DIGITS:
        return None
    return int(text)


def _check_span(peer: Peer, head: ResponseHead, length: int | None, digest: Digest, wanted: ByteRange | None) -> Span:
    """Return the span that a response contains. Raises PeerUnavailable if that is not the requested one."""
    if head.status in {429, 503}:
        raise PeerUnavailable(f"peer {peer.id} is busy", FailureReason.BUSY)
    if head.status == 416 and wanted is not None:
        raise _out_of_range_error(peer, head, wanted)
    if head.status not in {200, 206}:
        raise PeerUnavailable(f"peer {peer.id} answered {head.status}", FailureReason.REFUSED)
    if length is None:  # for example because a proxy sends chunks: not a fault of the peer
        raise PeerUnavailable(f"peer {peer.id} does not say how many bytes it sends", FailureReason.REFUSED)
    try:
        span = _parse_span(head, length, digest)
        requested = wanted.within(span.size) if wanted else Span.whole(span.size)
    except ValueError as error:
        if isinstance(error, Unsatisfiable) and wanted is not None and head.status == 200:
            raise OutOfRange(peer, wanted, error.size) from error  # it ignores ranges, which is allowed
        raise PeerUnavailable(f"peer {peer.id}: not the requested content: {error}", FailureReason.WRONG) from error
    if span != requested:  # it states honestly what it sends
        part = wanted or "the whole"
        raise PeerUnavailable(f"peer {peer.id} sends {span.content_range}, not {part}", FailureReason.REFUSED)
    return span


def _out_of_range_error(peer: Peer, head: ResponseHead, wanted: ByteRange) -> PeerUnavailable:
    """Return the error for a peer that answers 416 to the range `wanted`."""
    try:
        size = parse_unsatisfied_range(head.headers.get("content-range", ""))
        part = wanted.within(size)
    except Unsatisfiable as error:
        return OutOfRange(peer, wanted, error.size)
    except ValueError as error:
        return PeerUnavailable(f"peer {peer.id} answered 416: {error}", FailureReason.REFUSED)
    return PeerUnavailable(f"peer {peer.id} answered 416, though it has {part.content_range}", FailureReason.REFUSED)


def _parse_span(head: ResponseHead, length: int, digest: Digest) -> Span:
    """Return the span that the head of a response states. Raises ValueError if it is malformed or cannot be used."""
    headers = head.headers
    if headers.get("docker-content-digest", digest) != digest:
        raise ValueError(f"its digest is {headers['docker-content-digest']}")
    if headers.get("content-encoding", "identity") != "identity":
        raise ValueError(f"it is encoded: {headers['content-encoding']}")
    span = Span.whole(length) if head.status == 200 else parse_content_range(headers.get("content-range", ""))
    if span.length != length:
        raise ValueError(f"{length} bytes came as {span.content_range}")
    return span
