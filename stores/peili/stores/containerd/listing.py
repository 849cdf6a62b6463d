"""What containerd said that it has, in the namespaces that we serve. When to ask is `follower`'s matter."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import cast

from peili.mirror import Descriptor, Digest, Have, Reference
from peili.stores.containerd.api import Api
from peili.stores.containerd.protos import api_pb2 as pb


@dataclass(frozen=True, slots=True)
class Blob:
    """A whole blob: its size in bytes, and one of the namespaces that show it."""

    digest: Digest
    size: int
    namespace: str


@dataclass(frozen=True, slots=True)
class Tagged:
    """What a tag reference stands for, and the namespace that says so."""

    target: Descriptor
    namespace: str


@dataclass(slots=True)
class Listing:
    """Whole blobs and tag references. Of a reference that several namespaces have, the first namespace's counts."""

    blobs: dict[Digest, Blob] = field(default_factory=dict[Digest, Blob])
    images: dict[Reference, Tagged] = field(default_factory=dict[Reference, Tagged])

    @classmethod
    async def read(cls, api: Api, namespaces: Collection[str], before: Listing) -> Listing:
        """Ask for everything. Images first: what is there with its image is there when blobs are listed.

        What is as it was `before` is shared with that, so that thousands of blobs are not parsed and kept twice.
        """
        listing = cls(images=await list_images(api, namespaces))
        for namespace in namespaces:
            async for info in api.blobs(namespace):
                blob = before._known(info, namespace) or parse_blob(info, namespace)
                if blob is not None:
                    listing.blobs.setdefault(blob.digest, blob)
        return listing

    def _known(self, info: pb.Info, namespace: str) -> Blob | None:
        blob = self.blobs.get(cast("Digest", info.digest))  # equal texts are equal keys
        return blob if blob is not None and (blob.size, blob.namespace) == (info.size, namespace) else None

    def haves(self) -> Iterator[Have]:
        """Everything that can be served; a reference only where its target can."""
        for digest, blob in self.blobs.items():
            yield Have(digest, size=blob.size)
        for reference, tagged in self.images.items():
            if tagged.target.digest in self.blobs:
                yield Have(reference, size=tagged.target.size)


async def list_images(api: Api, namespaces: Collection[str]) -> dict[Reference, Tagged]:
    """The tag references of `namespaces`. Images under other names (by digest, without a registry) are left out."""
    images: dict[Reference, Tagged] = {}
    for namespace in namespaces:
        for image in await api.images(namespace):
            reference, target = parse_reference(image.name), parse_target(image)
            if reference is not None and target is not None:
                images.setdefault(reference, Tagged(target, namespace))
    return images


def parse_blob(info: pb.Info, namespace: str) -> Blob | None:
    """What containerd tells of a blob; None where its digest is of an algorithm that we don't know."""
    digest = parse_digest(info.digest)
    return Blob(digest, info.size, namespace) if digest else None


def parse_digest(text: str) -> Digest | None:
    """`text` as a digest; None where it is of an algorithm that we don't know."""
    try:
        return Digest(text)
    except ValueError:
        return None


def parse_reference(name: str) -> Reference | None:
    """An image's name as a tag reference; None where it is something else."""
    try:
        return Reference.parse(name)
    except ValueError:
        return None


def parse_target(image: pb.Image) -> Descriptor | None:
    """What an image stands for; None where its digest is of an algorithm that we don't know."""
    digest = parse_digest(image.target.digest)
    return Descriptor(image.target.media_type, digest, image.target.size) if digest else None
