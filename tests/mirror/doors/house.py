"""A host for the tests of its doors: a mirror on a store in memory, with an image in it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.types import ASGIApp

from peili.mirror import Mirror, Reference
from peili.mirror.oci.media_types import OCI_MANIFEST
from peili.mirror.resolvers import LocalResolver
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

DOORS = ("local", "peer")
TAGS = ("latest", "v1", "v2", "v3")


class House:
    """One host. `layer` is a blob, `manifest` is what all `TAGS` of ``registry.example/demo`` stand for.

    The same image is ``registry.example/v2/x:v1``, ``quay.example/demo:v1`` as well.
    """

    def __init__(self, **options: Any) -> None:
        self.store = MemoryStore()
        self.data = bytes(range(256)) * 40
        self.layer = self.store.add(self.data)
        self.config = self.store.add(b"{}")
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"digest": self.config.digest, "size": self.config.size},
            "layers": [{"digest": self.layer.digest, "size": self.layer.size}],
        }
        self.manifest_data = json.dumps(document).encode()
        self.manifest = self.store.add(self.manifest_data)
        for tag in TAGS:
            self.store.tag(Reference("registry.example", "demo", tag), self.manifest)
        self.store.tag(Reference("registry.example", "v2/x", "v1"), self.manifest)
        self.store.tag(Reference("quay.example", "demo", "v1"), self.manifest)
        given: dict[str, Any] = {"identity": "this-host", **options}
        self.mirror = Mirror(self.store, MemoryRouter(), LocalResolver(), **given)

    def door(self, name: str) -> ASGIApp:
        app: ASGIApp = getattr(self.mirror, name)
        return app

    @property
    def blob_path(self) -> str:
        return f"/v2/registry.example/demo/blobs/{self.layer.digest}"

    @property
    def manifest_path(self) -> str:
        return f"/v2/registry.example/demo/manifests/{self.manifest.digest}"


@asynccontextmanager
async def house(**options: Any) -> AsyncGenerator[House]:
    """A host whose mirror is entered."""
    it = House(**options)
    async with it.mirror:
        yield it


@asynccontextmanager
async def visitor(app: ASGIApp, client: str = "127.0.0.1") -> AsyncGenerator[httpx.AsyncClient]:
    """A client of `app` that comes from the address `client`."""
    transport = httpx.ASGITransport(app, client=(client, 40000))
    async with httpx.AsyncClient(transport=transport, base_url="http://door.example") as it:
        yield it


def codes(response: httpx.Response) -> Sequence[str]:
    """The codes of an error in the spec's JSON."""
    assert response.headers["Content-Type"] == "application/json"
    errors: list[dict[str, str]] = response.json()["errors"]
    assert all(isinstance(each["message"], str) and each["message"] for each in errors)
    return [each["code"] for each in errors]
