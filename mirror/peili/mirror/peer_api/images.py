"""How a host asks another one which images it has, to show them to an operator.

The request is ``GET {peer}/_inspection/v1/images``. A host answers about itself only, and names only images that it
serves to the host that asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from peili.mirror.oci.references import Digest, Reference
from peili.mirror.peer_api.messages import (
    MAX_KEY_LENGTH,
    checked,
    encode_message,
    parse_list,
    parse_number,
    parse_object,
    parse_text,
)

IMAGES_PATH = "/_inspection/v1/images"
"""The path at the peer door."""
MAX_IMAGES = 1000
"""The largest number of images in an answer."""


@dataclass(frozen=True, slots=True)
class ImageNames:
    """The images of a host that have a tag.

    Attributes:
        images: Each tag reference with the digest that it means there, at most `MAX_IMAGES`.
        total: How many there are in all.
    """

    images: Sequence[tuple[Reference, Digest]]
    total: int

    def encode(self) -> bytes:
        """Return the body of a response."""
        names = [[str(reference), digest] for reference, digest in self.images[:MAX_IMAGES]]
        return encode_message({"images": names, "total": self.total})

    @classmethod
    def parse(cls, data: bytes) -> ImageNames:
        """Read the body of a response. Raises ValueError."""
        message = parse_object(data)
        images = parse_list(message, "images", _parse_image, MAX_IMAGES)
        return cls(images, max(len(images), parse_number(message.get("total"), "the number of images")))


def _parse_image(value: Any) -> tuple[Reference, Digest]:
    pair = cast("list[Any]", checked(value, isinstance(value, list), "an image is not a list"))
    name, digest = checked(pair, len(pair) == 2, "an image has not two values")
    reference = Reference.parse(parse_text(name, "a reference", MAX_KEY_LENGTH))
    return reference, Digest(parse_text(digest, "a digest", MAX_KEY_LENGTH))
