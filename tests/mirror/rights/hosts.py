"""A host for tests of rights: its registry has a covered and an open repository, with a layer in common."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp
from tests.mirror.doors.in_memory_host import client_for
from tests.mirror.rights.registry import Registry, token
from tests.support.neighbours import served
from tests.support.waiting import until

from peili.mirror import Descriptor, Digest, Limits, Mirror, Peer, PullRights, PushRouter, Reference
from peili.mirror.oci.references import OCI_MANIFEST
from peili.mirror.resolvers import LocalResolver
from peili.stores.memory import MemoryStore

ALICE, BOB = f"Bearer {token('alice')}", f"Bearer {token('bob')}"
BASIC = "Basic " + base64.b64encode(b"alice:secret").decode()


def name_it(_: HTTPConnection) -> str:
    return "peer-1"


PROVEN: dict[str, Any] = {"auth": name_it}
"""Options of a host whose peers have all proven who they are."""
NOTHING_ELSE: dict[str, Any] = {}
PATIENT = Limits(upstream_timeout=20, connect_timeout=20)
"""No answer of the registry comes too late, even on a busy machine."""


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
        options.setdefault("limits", PATIENT)
        covered = None if rights is None else PullRights([f"{registry.name}/team/*"], **rights)
        resolver = options.pop("resolver", None) or LocalResolver()
        self.mirror = Mirror(self.store, self.router, resolver, rights=covered, **options)
        self.router.set(())

    def tag(self, repository: str, image: Descriptor) -> None:
        self.store.tag(Reference(self.registry.name, repository, "v1"), image)

    def follows_its_store(self) -> bool:
        """Return whether the mirror knows what was here before it."""
        gate = self.mirror._gate  # pyright: ignore[reportPrivateUsage]
        return gate is None or gate.repositories.arrivals._is_followed  # pyright: ignore[reportPrivateUsage]

    async def get(
        self, digest: Digest | str, repository: str = "team/app", *, rights: str | None = None, registry: str = ""
    ) -> httpx.Response:
        is_manifest = digest in {self.image.digest, self.free_image.digest, "v1", "v2"}
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
            await until(host.follows_its_store)
            yield host


@asynccontextmanager
async def pair(
    *, at_door: Callable[[ASGIApp], ASGIApp] = lambda app: app, **options: Any
) -> AsyncGenerator[tuple[Host, Host]]:
    """Yield two hosts with one registry. The first one has the images, the second one is empty and knows the first.

    Args:
        at_door: Returns what is served as the peer door of the first one.
        options: Those of the second one.
    """
    async with running(**PROVEN) as first:
        second = Host(first.registry, is_empty=True, **{"rights": {}, **PROVEN, **options})
        async with served(at_door(first.mirror.peer)) as url, second.mirror:
            second.router.set([Peer("first", (url,))])
            await second.mirror.wait_ready(30)
            await until(second.follows_its_store)
            yield first, second


def has_arrived(host: Host, digest: Digest) -> bool:
    """Return whether the host has noticed that `digest` arrives, or has arrived."""
    gate = host.mirror._gate  # pyright: ignore[reportPrivateUsage]
    return gate is not None and digest in gate.repositories.arrivals._arrived  # pyright: ignore[reportPrivateUsage]
