"""How a host asks another one what it knows about a tag.

The request is ``GET {peer}/_resolver/v1/tag?reference={reference}``. The answer says what the registry said last, and
what the other host's own image of that name is. Hosts ask each other while the registry does not answer.

Hosts that share tags ask the registry once for all. The home of the tag is asked
``GET {home}/_resolver/v1/shared-tag?reference={reference}&within=30``. It says what the registry said within
30 s, or answers 204 if the asking host shall ask the registry. That host then reports by
``POST {home}/_resolver/v1/told-tag?reference={reference}&told={answer}``, without ``told`` if it got no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlencode

from peili.mirror.oci.references import Descriptor, Digest, Reference, is_media_type
from peili.mirror.peer_api.messages import checked, encode_message, parse_number, parse_object

TAG_ROUTE = "/v1/tag"
"""The route, below the resolver's part of the peer door."""
SHARED_ROUTE = "/v1/shared-tag"
TOLD_ROUTE = "/v1/told-tag"
_PREFIX = "/_resolver"
_MAX_AGE = 2**40


@dataclass(frozen=True, slots=True)
class KnownTag:
    """What a tag means, and since when.

    Attributes:
        descriptor: The content.
        age: Seconds since the registry said so, or since the image has this name; None if that is not known.
    """

    descriptor: Descriptor
    age: float | None

    def encode(self) -> dict[str, Any]:
        """Return the JSON object."""
        each = self.descriptor
        known = {"digest": each.digest, "mediaType": each.media_type, "size": each.size}
        return known if self.age is None else {**known, "age": round(self.age, 3)}

    @classmethod
    def parse(cls, value: Any) -> KnownTag | None:
        """Read the JSON object; None if it is missing. Raises ValueError."""
        if value is None:
            return None
        known = cast("dict[str, Any]", checked(value, isinstance(value, dict), "not a JSON object"))
        media_type, age = known.get("mediaType"), known.get("age")
        is_type = isinstance(media_type, str) and is_media_type(media_type)
        is_age = age is None or (isinstance(age, (int, float)) and not isinstance(age, bool) and 0 <= age < _MAX_AGE)
        descriptor = Descriptor(
            checked(cast("str", media_type), is_type, "not a media type"),
            Digest(str(known.get("digest"))),
            parse_number(known.get("size"), "a size"),
        )
        return cls(descriptor, checked(age, is_age, "not a number of seconds"))


@dataclass(frozen=True, slots=True)
class TagAnswer:
    """What a host knows about a tag.

    Attributes:
        told: What the registry said last, to this host or to one that told it.
        image: The image of this name that the host has.
    """

    told: KnownTag | None = None
    image: KnownTag | None = None

    def encode(self) -> bytes:
        """Return the body of the response."""
        parts = {"told": self.told, "image": self.image}
        return encode_message({name: each.encode() for name, each in parts.items() if each is not None})

    @classmethod
    def parse(cls, data: bytes) -> TagAnswer:
        """Read the body of a response. Raises ValueError."""
        message = parse_object(data)
        return cls(KnownTag.parse(message.get("told")), KnownTag.parse(message.get("image")))


def tag_path(reference: Reference) -> str:
    """Return path and query of the request about `reference`, relative to the base URL of the peer."""
    return f"{_PREFIX}{TAG_ROUTE}?{urlencode({'reference': str(reference)})}"


def shared_path(reference: Reference, within: float) -> str:
    """Return path and query of the request for what the registry said about `reference` within some seconds."""
    return f"{_PREFIX}{SHARED_ROUTE}?{urlencode({'reference': str(reference), 'within': f'{within:g}'})}"


def told_path(reference: Reference, told: KnownTag | None) -> str:
    """Return path and query of the report of what the registry said; None if it said nothing."""
    query = {"reference": str(reference)}
    if told is not None:
        query["told"] = encode_message(told.encode()).decode()
    return f"{_PREFIX}{TOLD_ROUTE}?{urlencode(query)}"


def parse_told(text: str | None) -> KnownTag | None:
    """Return the tag in a report; None if it is missing. Raises ValueError."""
    return None if text is None else KnownTag.parse(parse_object(text.encode()))


def parse_within(text: str | None) -> float:
    """Return a number of seconds, however many an operator has configured. Raises ValueError."""
    within = float(text or "")
    return checked(within, 0 < within < _MAX_AGE, f"within is not a number of seconds up to {_MAX_AGE}")
