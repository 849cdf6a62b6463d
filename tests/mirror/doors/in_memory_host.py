"""A host for the tests of the doors: a mirror whose store in memory has one image."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.types import ASGIApp

from peili.mirror import Mirror, Reference
from peili.mirror.oci.references import OCI_MANIFEST
from peili.mirror.resolvers import LocalResolver
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

DOORS = ("local", "peer")
TAGS = ("latest", "v1", "v2", "v3")


class InMemoryHost:
    """One host.

    All `TAGS` of ``registry.example/demo`` refer to `manifest`, whose one layer is `layer`. The image also has the
    references ``registry.example/v2/x:v1`` and ``quay.example/demo:v1``.
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
        all_options: dict[str, Any] = {"identity": "this-host", **options}
        self.mirror = Mirror(self.store, MemoryRouter(), LocalResolver(), **all_options)

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
async def in_memory_host(**options: Any) -> AsyncGenerator[InMemoryHost]:
    """Yield a host whose mirror is running."""
    host = InMemoryHost(**options)
    async with host.mirror:
        yield host


@asynccontextmanager
async def client_for(app: ASGIApp, client: str = "127.0.0.1") -> AsyncGenerator[httpx.AsyncClient]:
    """Yield a client of `app` that has the address `client`."""
    transport = httpx.ASGITransport(app, client=(client, 40000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http_client:
        yield http_client


def error_codes(response: httpx.Response) -> Sequence[str]:
    """Return the error codes of a response."""
    assert response.headers["Content-Type"] == "application/json"
    errors: list[dict[str, str]] = response.json()["errors"]
    assert all(isinstance(each["message"], str) and each["message"] for each in errors)
    return [each["code"] for each in errors]
