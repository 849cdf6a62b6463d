"""The containerd store: serves what this host's containerd has, from containerd's own files.

An *ingest* is containerd's word for a blob that a client is still writing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from typing_extensions import override

from peili.mirror import (
    MAX_MANIFEST,
    OCTET_STREAM,
    Aborted,
    Content,
    Context,
    Descriptor,
    Digest,
    FileContent,
    Inventory,
    NotFound,
    Reference,
    Store,
    StoreEvent,
    StoreUnavailable,
    detect_media_type,
    open_below,
    running_already,
)
from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.content import ApiContent, blob_path, is_absent, is_ref_of, open_ingest
from peili.stores.containerd.follower import ContainerdFollower
from peili.stores.containerd.ingests import IngestFollower
from peili.stores.containerd.listing import Blob, list_images, list_repositories, parse_target
from peili.stores.containerd.options import DEFAULT_ADDRESS, ContainerdOptions

_SOURCE_LABEL = "containerd.io/distribution.source."
"""The beginning of the labels with which containerd notes from which registries it has fetched a blob."""
_MAX_MEDIA_TYPES = 8192
"""Blobs whose media type is remembered."""


@dataclass(frozen=True, slots=True)
class _RunningState:
    """What the store uses while its `run` is entered."""

    api: ContainerdApi
    follower: ContainerdFollower
    ingests: IngestFollower
    log: logging.Logger


class ContainerdStore(Store):
    """Serves the content of one containerd, over all of its namespaces or some of them.

    Content is visible if one of the namespaces has it. It is read from containerd's own directory, or through its API
    if the directory can't be read. While containerd is away, known blobs are still served from the directory; every
    other request raises StoreUnavailable.

    Args:
        address: The path of containerd's socket, with or without the prefix ``unix://``.
        namespaces: The namespaces to serve. If several have a tag, the first of them wins. Empty: all namespaces.
        content_path: The directory of containerd's content store as this process sees it. By default, it is the path
            that containerd reports.

    Raises:
        ConfigError: An option is wrong.
    """

    def __init__(
        self, address: str = DEFAULT_ADDRESS, *, namespaces: Sequence[str] = (), content_path: str | Path | None = None
    ) -> None:
        config: dict[str, Any] = {"address": address, "namespaces": namespaces}
        if content_path is not None:
            config["content_path"] = content_path
        self._options = ContainerdOptions.from_config(config)
        self._inventory = Inventory()
        self._media_types: OrderedDict[Digest, str] = OrderedDict()
        self._active: _RunningState | None = None

    @override
    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        options = ContainerdOptions.from_config(config)  # the constructor checks its arguments in the same way
        return cls(str(options.socket), namespaces=options.namespaces, content_path=options.content_path)

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        if self._active is not None:
            raise running_already(self)
        async with ContainerdApi(self._options.socket) as api, asyncio.TaskGroup() as tasks:
            follower = ContainerdFollower(api, self._options, self._inventory, context.log)
            ingests = IngestFollower(follower, self._options.namespaces, self._inventory)
            # If one of these fails, `run` fails too, and the mirror enters it anew.
            following = [tasks.create_task(each.run()) for each in (follower, ingests)]
            self._active = _RunningState(api, follower, ingests, context.log)
            try:
                yield
            finally:
                self._active = None
                self._inventory.synced = False  # there may be another containerd at the next entry
                for task in following:
                    task.cancel()

    @override
    def ready(self) -> bool:
        return self._active is not None and self._active.follower.is_connected

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        target, _ = await self._image(reference)
        return target

    @override
    async def tagged_at(self, reference: Reference) -> float | None:
        _, updated = await self._image(reference)
        return updated or None

    async def _image(self, reference: Reference) -> tuple[Descriptor, float]:
        """Return what an image is, and when it was updated, in seconds since 1970. Raises NotFound."""
        for namespace in await self._namespaces():
            try:
                image = await self._connection.api.image(namespace, str(reference))
                target = parse_target(image)
                if target is not None:
                    await self._find_blob(target.digest)  # a tag without its manifest does not count
                    return target, image.updated_at.seconds
            except NotFound:
                continue
        raise NotFound(f"containerd has no image {reference}")

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        blob = await self._find_blob(digest)
        media_type = self._media_types.get(digest)
        if media_type is None:
            media_type = self._media_types[digest] = await self._detect_media_type(digest, blob)
            if len(self._media_types) > _MAX_MEDIA_TYPES:
                self._media_types.popitem(last=False)
        self._media_types.move_to_end(digest)
        return Descriptor(media_type, digest, blob.size)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        try:
            return await self._open_blob(digest)
        except NotFound:
            self._connection.follower.refresh_access()  # the first blob of a new containerd creates the directory
            root = self._connection.follower.content_root
            if not partial or root is None:
                raise
        try:
            ingests, namespaces = self._connection.ingests, await self._namespaces()
            is_given_up, expect_open = ingests.is_given_up, ingests.expect_open
            return await open_ingest(root, namespaces, digest, is_given_up=is_given_up, expect_open=expect_open)
        except NotFound:
            return await self._open_blob(digest)  # the ingest may have become a blob in between

    @override
    def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        return self._inventory.watch()

    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        present: list[tuple[Reference, Descriptor]] = []
        for reference, image in (await list_images(self._connection.api, await self._namespaces())).items():
            try:
                await self._find_blob(image.target.digest)
            except NotFound:
                continue
            present.append((reference, image.target))
        return sorted(present, key=lambda each: each[0])

    @override
    async def repositories(self) -> Collection[tuple[str, str, Digest]]:
        return await list_repositories(self._connection.api, await self._namespaces())

    @override
    async def was_fetched(self, digest: Digest) -> bool:
        """Return whether containerd has noted where it fetched a blob from. It does so just after it has the blob."""
        api, is_here = self._connection.api, False
        for namespace in await self._namespaces():
            try:
                labels = (await api.info(namespace, digest)).labels
            except NotFound:
                continue
            is_here = True
            if any(each.startswith(_SOURCE_LABEL) for each in labels):
                return True
        if not is_here:
            raise NotFound(f"containerd has no content {digest}")
        return False

    @override
    def shows_in_flight(self) -> bool:
        return self._active is not None and self._active.follower.shows_ingests()

    @override
    async def discard(self, digest: Digest) -> bool:
        """Remove an ingest, but only if it is the only one of `digest` in all served namespaces.

        containerd does not tell which client writes an ingest. If there are several, another client's may be right.
        """
        api, log = self._connection.api, self._connection.log
        found = [
            (namespace, ref)
            for namespace in await self._namespaces()
            for ref in await api.ingests(namespace)
            if is_ref_of(ref, digest)
        ]
        if len(found) > 1:
            log.warning("%s: none of %d ingests is removed, because it is unknown which is wrong", digest, len(found))
        if len(found) != 1:
            return False
        try:
            await api.abort(*found[0])
        except NotFound:  # it has ended by itself
            return False
        return True

    @property
    def _connection(self) -> _RunningState:
        if self._active is None:
            raise StoreUnavailable("the containerd store is not running")
        return self._active

    async def _namespaces(self) -> Sequence[str]:
        return self._connection.follower.namespaces or await self._connection.api.namespaces()

    async def _find_blob(self, digest: Digest) -> Blob:
        """Return a blob from the last list. If it is not there, ask containerd, unless there is certainly no file."""
        follower = self._connection.follower
        blob = follower.listing.blobs.get(digest)
        if blob is None and follower.is_connected and is_absent(follower.content_root, digest):
            raise NotFound(f"containerd has no content {digest}")
        return blob or await self._ask_for_blob(digest)

    async def _ask_for_blob(self, digest: Digest) -> Blob:
        for namespace in await self._namespaces():
            try:
                info = await self._connection.api.info(namespace, digest)
            except NotFound:
                continue
            return Blob(digest, info.size, namespace)
        raise NotFound(f"containerd has no content {digest}")

    async def _open_blob(self, digest: Digest) -> Content:
        blob, root = await self._find_blob(digest), self._connection.follower.content_root
        if root is not None:
            try:
                path = blob_path(root, digest).relative_to(root)
                content = await FileContent.open(path, opener=partial(open_below, root))
            except (NotFound, StoreUnavailable):
                pass  # removed since the last list, or not readable for this process: ask containerd
            else:
                if content.size == blob.size:
                    return content
                await content.aclose()
        return ApiContent(self._connection.api, digest, await self._ask_for_blob(digest))

    async def _detect_media_type(self, digest: Digest, blob: Blob) -> str:
        if blob.size > MAX_MANIFEST:
            return OCTET_STREAM
        data, read = bytearray(blob.size), 0
        try:
            async with await self._open_blob(digest) as content:
                while read < blob.size:  # a read of available bytes returns at least one, or raises
                    read += await content.readinto(read, memoryview(data)[read:])
        except Aborted as error:
            raise NotFound(f"{digest} was removed just now") from error
        return detect_media_type(bytes(data))
