"""The containerd store: what this host's containerd has, served from where it has it."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from typing_extensions import override

from peili.mirror import (
    Aborted,
    Content,
    Context,
    Descriptor,
    Digest,
    NotFound,
    Reference,
    Store,
    StoreEvent,
    StoreUnavailable,
)
from peili.mirror.content.files import FileContent
from peili.mirror.content.inventory import Inventory
from peili.mirror.limits import MIB
from peili.mirror.oci.media_types import OCTET_STREAM, detect
from peili.mirror.plugins.interfaces import running_already
from peili.stores.containerd.api import Api
from peili.stores.containerd.content import ApiContent, blob_path, is_absent
from peili.stores.containerd.follower import Follower
from peili.stores.containerd.ingest import is_ref_of, open_ingest
from peili.stores.containerd.listing import Blob, list_images, parse_target
from peili.stores.containerd.options import DEFAULT_ADDRESS, Options, known_options

MANIFEST_SIZE = 4 * MIB
"""What is larger is no manifest (OCI distribution spec, "Pushing Manifests": registries should take up to 4 MiB)."""
_MEDIA_TYPES = 8192  # blobs whose media type is remembered


@dataclass(frozen=True, slots=True)
class _Running:
    """What there is while the store is entered."""

    api: Api
    follower: Follower
    log: logging.Logger


class ContainerdStore(Store):
    """Serves the content of the containerd behind a socket, over all of its namespaces or some.

    Content is visible where one of the namespaces has it. It is read from containerd's own directory, through its API
    where that can't be read. While containerd is away, what it was known to have is served from there all the same;
    everything else raises StoreUnavailable.

    Options:
        address: the path of containerd's socket, with or without ``unix://`` before it.
        namespaces: those to serve; of a tag that several have, the first one's counts. Empty: all there are.
        content_path: where this process finds the directory of containerd's content store. By default that is where
            containerd says.

    Raises ConfigError for an option that is wrong.
    """

    def __init__(
        self, address: str = DEFAULT_ADDRESS, *, namespaces: Sequence[str] = (), content_path: str | None = None
    ) -> None:
        self._options = Options.checked(address, namespaces, content_path)
        self._inventory = Inventory()
        self._media_types: OrderedDict[Digest, str] = OrderedDict()
        self._entered: _Running | None = None

    @override
    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(**known_options(config))

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        if self._entered is not None:
            raise running_already(self)
        async with Api(self._options.socket) as api, asyncio.TaskGroup() as tasks:
            follower = Follower(api, self._options, self._inventory, context.log)
            following = tasks.create_task(follower.run())  # should it fail, so does this, and the mirror enters it anew
            self._entered = _Running(api, follower, context.log)
            try:
                yield
            finally:
                self._entered = None
                self._inventory.synced = False  # it may be another containerd when this is entered again
                following.cancel()

    @override
    def ready(self) -> bool:
        return self._entered is not None and self._entered.follower.connected

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        for namespace in await self._namespaces():
            try:
                target = parse_target(await self._running.api.image(namespace, str(reference)))
                if target is not None:
                    await self._locate(target.digest)
                    return target
            except NotFound:
                continue
        raise NotFound(f"containerd has no image {reference}")

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        blob = await self._locate(digest)
        media_type = self._media_types.get(digest)
        if media_type is None:
            media_type = self._media_types[digest] = await self._detect(digest, blob)
            if len(self._media_types) > _MEDIA_TYPES:
                self._media_types.popitem(last=False)
        self._media_types.move_to_end(digest)
        return Descriptor(media_type, digest, blob.size)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        try:
            return await self._open_whole(digest)
        except NotFound:
            root = self._running.follower.content_root
            if not partial or root is None:
                raise
        try:
            return await open_ingest(root, await self._namespaces(), digest)
        except NotFound:
            return await self._open_whole(digest)  # it may have become whole in between

    @override
    def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        return self._inventory.watch()

    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        found = await list_images(self._running.api, await self._namespaces())
        present: list[tuple[Reference, Descriptor]] = []
        for reference, tagged in found.items():
            try:
                await self._locate(tagged.target.digest)
            except NotFound:
                continue
            present.append((reference, tagged.target))
        return sorted(present, key=lambda each: each[0])

    @override
    async def discard(self, digest: Digest) -> bool:
        """As `Store.discard`. containerd does not tell whose an unfinished copy is, so one that is not the only one of
        `digest`, over all namespaces that are served, stays: another client's may be right.
        """
        api, log = self._running.api, self._running.log
        found = [
            (namespace, ref)
            for namespace in await self._namespaces()
            for ref in await api.ingests(namespace)
            if is_ref_of(ref, digest)
        ]
        if len(found) > 1:
            log.warning("%s: %d unfinished copies, and no telling which is wrong: none is removed", digest, len(found))
        if len(found) != 1:
            return False
        try:
            await api.abort(*found[0])
        except NotFound:  # it ended by itself
            return False
        return True

    @property
    def _running(self) -> _Running:
        if self._entered is None:
            raise StoreUnavailable("the containerd store is not running")
        return self._entered

    async def _namespaces(self) -> Sequence[str]:
        return self._running.follower.namespaces or await self._running.api.namespaces()

    async def _locate(self, digest: Digest) -> Blob:
        """Where `digest` is: what was listed is believed. Of anything else containerd is asked, unless it is plain that
        there is no such blob.
        """
        follower = self._running.follower
        blob = follower.listing.blobs.get(digest)
        if blob is None and follower.connected and is_absent(follower.content_root, digest):
            raise NotFound(f"containerd has no content {digest}")
        return blob or await self._ask(digest)

    async def _ask(self, digest: Digest) -> Blob:
        for namespace in await self._namespaces():
            try:
                info = await self._running.api.info(namespace, digest)
            except NotFound:
                continue
            return Blob(digest, info.size, namespace)
        raise NotFound(f"containerd has no content {digest}")

    async def _open_whole(self, digest: Digest) -> Content:
        blob, root = await self._locate(digest), self._running.follower.content_root
        if root is not None:
            try:
                content = await FileContent.open(blob_path(root, digest))
            except (NotFound, StoreUnavailable):
                pass  # removed since it was listed, or not shown to us: containerd knows
            else:
                if content.size == blob.size:
                    return content
                await content.aclose()
        return ApiContent(self._running.api, digest, await self._ask(digest))

    async def _detect(self, digest: Digest, blob: Blob) -> str:
        """The media type, by what the content says itself."""
        if blob.size > MANIFEST_SIZE:
            return OCTET_STREAM
        data, read = bytearray(blob.size), 0
        try:
            async with await self._open_whole(digest) as content:
                while read < blob.size:
                    read += await content.readinto(read, memoryview(data)[read:])
        except Aborted as error:
            raise NotFound(f"{digest} was removed just now") from error
        return detect(bytes(data))
