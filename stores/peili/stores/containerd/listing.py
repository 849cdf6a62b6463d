"""What containerd has in the namespaces that the store serves: its lists, and its events about changes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from google.protobuf.message import DecodeError

from peili.mirror import Descriptor, Digest, Have, Reference
from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.protos import api_pb2 as pb

EVENT_FILTER = 'topic~="^/(images|content|namespaces)/"'
"""Excludes the events of containers, tasks and snapshots, which are many."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A complete blob: its size in bytes, and one of the namespaces that have it."""

    digest: Digest
    size: int
    namespace: str


@dataclass(frozen=True, slots=True)
class TaggedImage:
    """The descriptor that a tag reference points to, and the namespace that has the tag."""

    target: Descriptor
    namespace: str


@dataclass(frozen=True, slots=True)
class ImageDeleted:
    """The event that the image `reference` was deleted. Its content may be removed later."""

    namespace: str
    reference: Reference


@dataclass(frozen=True, slots=True)
class BlobCreated:
    """The event that a blob is complete. Only containerd ≥ 2.1 sends it; else `RecentChanges` asks."""

    namespace: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class ImageChanged:
    """The event that an image with a tag was created or updated. It does not say what the image is now."""

    namespace: str
    reference: Reference


@dataclass(frozen=True, slots=True)
class ImageFound:
    """What a tag means now, as containerd answered when it was asked about one image."""

    namespace: str
    reference: Reference
    target: Descriptor


@dataclass(frozen=True, slots=True)
class NamespaceChanged:
    """Any other event: the next list shows what changed. An empty `namespace` stands for any namespace."""

    namespace: str


ContainerdEvent: TypeAlias = ImageDeleted | BlobCreated | ImageChanged | ImageFound | NamespaceChanged


@dataclass(slots=True)
class Listing:
    """The complete blobs and the tag references. If several namespaces have a tag, the first namespace wins."""

    blobs: dict[Digest, Blob] = field(default_factory=dict[Digest, Blob])
    images: dict[Reference, TaggedImage] = field(default_factory=dict[Reference, TaggedImage])

    @classmethod
    async def read(cls, api: ContainerdApi, namespaces: Collection[str], previous: Listing) -> Listing:
        """List everything.

        The images come first, so that a blob that is there together with its image is in the list of blobs too. Blobs
        that have not changed are shared with `previous`, so that thousands of them are not parsed and stored twice.
        """
        listing = cls(images=await list_images(api, namespaces))
        for namespace in namespaces:
            async for info in api.blobs(namespace):
                blob = previous.blobs.get(cast("Digest", info.digest))  # a plain string finds the equal digest
                if blob is None or (blob.size, blob.namespace) != (info.size, namespace):
                    digest = _parse_digest(info.digest)
                    blob = Blob(digest, info.size, namespace) if digest else None
                if blob is not None:
                    listing.blobs.setdefault(blob.digest, blob)
        return listing

    def apply(self, event: ContainerdEvent, namespaces: Collection[str]) -> bool:
        """Apply what `event` says for certain. Returns whether something else may have changed in `namespaces`."""
        match event:
            case BlobCreated(namespace, digest, size) if namespace in namespaces:
                self.blobs.setdefault(digest, Blob(digest, size, namespace))
                return True
            case ImageDeleted(namespace, reference) if namespace in namespaces:
                image = self.images.get(reference)
                if image is not None and image.namespace == namespace:
                    del self.images[reference]
                return True
            case ImageFound(namespace, reference, target) if namespace in namespaces:
                image = self.images.get(reference)
                if image is None or not _is_before(image.namespace, namespace, namespaces):
                    self.images[reference] = TaggedImage(target, namespace)
                return True
            case _:
                return not event.namespace or event.namespace in namespaces

    def store_events(self) -> Iterator[Have]:
        """Yield a `Have` for each blob, and for each tag whose target is a complete blob."""
        for digest, blob in self.blobs.items():
            yield Have(digest, size=blob.size)
        for reference, image in self.images.items():
            if image.target.digest in self.blobs:
                yield Have(reference, size=image.target.size, target=image.target.digest)


async def list_images(api: ContainerdApi, namespaces: Collection[str]) -> dict[Reference, TaggedImage]:
    """Return the tag references of `namespaces`, without images whose name has no registry or has a digest."""
    images: dict[Reference, TaggedImage] = {}
    for namespace in namespaces:
        for image in await api.images(namespace):
            reference, target = _parse_reference(image.name), parse_target(image)
            if reference is not None and target is not None:
                images.setdefault(reference, TaggedImage(target, namespace))
    return images


async def list_repositories(api: ContainerdApi, namespaces: Collection[str]) -> Collection[tuple[str, str, Digest]]:
    """Return registry, repository and digest of the images of `namespaces` whose name has a registry."""
    found: set[tuple[str, str, Digest]] = set()
    for namespace in namespaces:
        for image in await api.images(namespace):
            reference, target = _parse_name(image.name), parse_target(image)
            if reference is not None and target is not None:
                found.add((reference.registry, reference.repository, target.digest))
    return found


def parse_target(image: pb.Image) -> Descriptor | None:
    """Return the descriptor that an image points to; None if the algorithm of its digest is unknown."""
    digest = _parse_digest(image.target.digest)
    return Descriptor(image.target.media_type, digest, image.target.size) if digest else None


def parse_event(envelope: pb.Envelope) -> ContainerdEvent:
    """Parse an event. One that can't be parsed is a `NamespaceChanged`. Never raises."""
    try:
        match envelope.topic:
            case "/images/delete":
                reference = _parse_reference(pb.ImageEvent.FromString(envelope.event.value).name)
                if reference is not None:
                    return ImageDeleted(envelope.namespace, reference)
            case "/images/create" | "/images/update":
                reference = _parse_reference(pb.ImageEvent.FromString(envelope.event.value).name)
                if reference is not None:
                    return ImageChanged(envelope.namespace, reference)
            case "/content/create":
                event = pb.ContentEvent.FromString(envelope.event.value)
                digest = _parse_digest(event.digest)
                if digest is not None:
                    return BlobCreated(envelope.namespace, digest, event.size)
            case topic if topic.startswith("/namespaces/"):
                return NamespaceChanged("")
            case _:
                pass
    except DecodeError:
        pass
    return NamespaceChanged(envelope.namespace)


def _is_before(one: str, other: str, namespaces: Collection[str]) -> bool:
    """Return whether `one` comes before `other` among the namespaces."""
    return next((each for each in namespaces if each in {one, other}), other) == one != other


def _parse_digest(text: str) -> Digest | None:
    try:
        return Digest(text)
    except ValueError:
        return None


def _parse_name(name: str) -> Reference | None:
    """Return a reference to the repository in the name of an image, which may have a tag, a digest or both."""
    head, at, _ = name.partition("@")
    return _parse_reference(head) or (_parse_reference(f"{head}:none") if at else None)


def _parse_reference(name: str) -> Reference | None:
    try:
        return Reference.parse(name)
    except ValueError:
        return None
