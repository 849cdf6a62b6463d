"""How a host asks another one which bytes it received, to find out where a wrong byte entered content in flight.

The request is ``GET {peer}/_relay/v1/received/{digest}``. The answer has no content, only digests of its beginnings, so
that two hosts can compare what they received. A host answers about itself only.

With ``?stored=no``, it does not read its store for the answer, which is then there at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from peili.mirror.limits import MIB
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.messages import (
    checked,
    encode_message,
    parse_identity,
    parse_list,
    parse_number,
    parse_object,
    parse_text,
)

RECEIVED_ROUTE = "/_relay/v1/received/{digest}"
"""The route at the peer door."""
BLOCK = MIB
"""The distance of two digests in bytes."""
PREFIX_LENGTH = 16
"""The number of hexadecimal digits of a digest that are compared."""
MAX_PREFIXES = 32_768
"""The largest number of digests in an answer. What follows in larger content is not compared."""
MAX_ATTEMPTS = 3
"""The largest number of attempts in an answer."""
_MAX_SOURCES = 256


@dataclass(slots=True)
class ReceivedBytes:
    """One attempt of a host to receive content.

    Attributes:
        prefixes: The digest of the first `BLOCK` bytes, of the first two, and so on, and in the end of all bytes. The
            algorithm is that of the content's digest.
        sources: From which byte on the host read from whom, by the id; None means from upstream.
        is_wrong: Whether the host knows that the digest of these bytes is wrong.
    """

    prefixes: Sequence[str] = field(default_factory=list[str])
    sources: list[tuple[int, str | None]] = field(default_factory=list[tuple[int, str | None]])
    is_wrong: bool = False

    def encode(self) -> dict[str, Any]:
        """Return the JSON object."""
        attempt = {"sources": self.sources[-_MAX_SOURCES:], "prefixes": list(self.prefixes)[:MAX_PREFIXES]}
        return {**attempt, "wrong": True} if self.is_wrong else attempt

    @classmethod
    def parse(cls, value: Any) -> ReceivedBytes:
        """Read the JSON object. Raises ValueError."""
        attempt = checked(value, isinstance(value, dict), "an attempt is not a JSON object")
        prefixes = parse_list(attempt, "prefixes", _parse_prefix, MAX_PREFIXES)
        sources = parse_list(attempt, "sources", _parse_source, _MAX_SOURCES)
        return cls(prefixes, list(sources), attempt.get("wrong") is True)


def encode_received(attempts: Sequence[ReceivedBytes]) -> bytes:
    """Return the body of a response: what a host received, in several attempts, the latest last."""
    return encode_message({"attempts": [attempt.encode() for attempt in attempts[-MAX_ATTEMPTS:]]})


def parse_received(data: bytes) -> Sequence[ReceivedBytes]:
    """Read the body of a response. Raises ValueError."""
    return parse_list(parse_object(data), "attempts", ReceivedBytes.parse, MAX_ATTEMPTS)


def received_path(digest: Digest, *, reads_store: bool = True) -> str:
    """Return the path of the request about `digest`, relative to the base URL of the peer.

    Args:
        digest: The content.
        reads_store: Whether the host reads its store for the answer.
    """
    return RECEIVED_ROUTE.replace("{digest}", digest) + ("" if reads_store else "?stored=no")


def _parse_prefix(value: Any) -> str:
    return parse_text(value, "a digest", PREFIX_LENGTH)


def _parse_source(value: Any) -> tuple[int, str | None]:
    pair = cast("list[Any]", checked(value, isinstance(value, list), "a source is not a list"))
    start, source = checked(pair, len(pair) == 2, "a source has not two values")
    return parse_number(start, "a number of bytes"), None if source is None else parse_identity(source)
