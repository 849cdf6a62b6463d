"""A host for tests of rights: its registry has a covered and an open repository, with a layer in common."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from tests.mirror.doors.in_memory_host import client_for
from tests.mirror.rights.registry import Registry, token

from peili.mirror import Descriptor, Digest, Mirror, PullRights, PushRouter, Reference
from peili.mirror.oci.references import OCI_MANIFEST
from peili.mirror.resolvers import LocalResolver
from peili.stores.memory import MemoryStore

ALICE, BOB = f"Bearer {token('alice')}", f"Bearer {token('bob')}"
BASIC = "Basic " + base64.b64encode(b"alice:secret").decode()

NOTHING_ELSE: dict[str, Any] = {}


def add_image(store: MemoryStore, *layers: Descriptor, config: bytes) -> Descriptor:
    """Add a manifest with its config."""
    entries = [{"digest": each.digest, "size": each.size} for each in (store.add(config), *layers)]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entries[0], "layers": entries[1:]}
    return store.add(json.dumps(document).encode())


class Host:
    """A mirror of a registry with a covered repository ``team/app`` and an open one, ``free/app``.

    Both images have the layer `shared`. The store has both, but only the covered one has a tag.
    """

    def __init__(self, registry: Registry, *, is_empty: bool = False, rights: Any = None, **options: Any) -> None:
        self.registry, self.store, self.router = registry, MemoryStore(), PushRouter()
        store = MemoryStore() if is_empty else self.store
        self.secret, self.shared, self.free = (store.add(each) for each in (b"secret", b"shared", b"free"))
        self.image = add_image(store, self.secret, self.shared, config=b"{}")
        self.free_image = add_image(store, self.shared, self.free, config=b"{ }")
        registry.content = {
            "team/app": {self.image.digest, self.secret.digest, self.shared.digest},
            "free/app": {self.free_image.digest, self.shared.digest, self.free.digest},
        }
        registry.tags = {"team/app": self.image.digest, "free/app": self.free_image.digest}
        registry.rights = {ALICE: {"team/app"}, BASIC: {"team/app"}, BOB: {"free/app"}}
        if not is_empty:
            self.tag("team/app", self.image)
        covered = None if rights is None else PullRights([f"{registry.name}/team/*"], **rights)
        resolver = options.pop("resolver", None) or LocalResolver()
        self.mirror = Mirror(self.store, self.router, resolver, rights=covered, **options)
        self.router.set(())

    def tag(self, repository: str, image: Descriptor) -> None:
        self.store.tag(Reference(self.registry.name, repository, "v1"), image)

    async def get(
        self, digest: Digest | str, repository: str = "team/app", *, rights: str | None = None, registry: str = ""
    ) -> httpx.Response:
        is_manifest = digest in {self.image.digest, self.free_image.digest, "v1"}
        kind, headers = "manifests" if is_manifest else "blobs", {} if rights is None else {"Authorization": rights}
        async with client_for(self.mirror.local) as client:
            path = f"/v2/{repository}/{kind}/{digest}?ns={registry or self.registry.name}"
            return await client.get(path, headers=headers)

    async def status(self, digest: Digest | str, repository: str = "team/app", rights: str | None = None) -> int:
        return (await self.get(digest, repository, rights=rights)).status_code


@asynccontextmanager
async def running(
    *, challenge: str | None = "", rights: dict[str, Any] | None = NOTHING_ELSE, **options: Any
) -> AsyncGenerator[Host]:
    """Yield a host that runs, and its registry. `rights` are options of `PullRights`; None: nothing is covered."""
    registry = Registry()
    if challenge != "":
        registry.challenge = challenge
    async with registry.run():
        host = Host(registry, rights=rights, **options)
        async with host.mirror:
            await host.mirror.wait_ready(30)
            yield host
