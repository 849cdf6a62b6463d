"""A registry for tests of rights: a small real server that knows tokens, and counts what it is asked."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.support.neighbours import served

from peili.mirror import Digest
from peili.mirror.oci.references import OCI_MANIFEST

REALM = "http://127.0.0.1:9/token"
"""A token server that nobody has reached yet."""


def token(name: str, **claims: object) -> str:
    """Return a JSON Web Token that nobody has signed."""
    parts: tuple[dict[str, object], ...] = ({"alg": "none"}, {"sub": name, **claims}, {})
    return ".".join(base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=") for each in parts)


@dataclass
class Registry:
    """What the registry has, and who may read it.

    Attributes:
        content: The digests of each repository.
        tags: What the tag ``v1`` of each repository means.
        rights: The repositories of each Authorization header.
        public: The repositories that everybody may read.
        challenge: What it demands; None if it demands nothing.
        asked: The HEAD requests: path, and the Authorization header.
        bases: How often it was asked for ``/v2/``.
        base: What it answers to that, if it is not None.
        status: The status of every answer, if it is not None.
        troubles: What it answers to these Authorization headers, whatever they are for.
        silent_to: The Authorization headers whose requests wait.
        page: The page with which it answers every request for content, if it is not None.
        location: Where it sends every request for content, whatever it is, if it is not None.
        name: The registry, as references name it.
        open: While it is not set, requests wait.
        never: Is set at the end.
    """

    content: dict[str, set[Digest]] = field(default_factory=dict[str, set[Digest]])
    tags: dict[str, Digest] = field(default_factory=dict[str, Digest])
    rights: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    public: set[str] = field(default_factory=set[str])
    challenge: str | None = f'Bearer realm="{REALM}",service="registry.example"'
    asked: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    bases: int = 0
    base: tuple[int, dict[str, str]] | None = None
    status: int | None = None
    troubles: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict[str, tuple[int, dict[str, str]]])
    silent_to: set[str] = field(default_factory=set[str])
    location: str | None = None
    page: bytes | None = None
    name: str = ""
    open: asyncio.Event = field(default_factory=asyncio.Event)
    never: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Serve the registry."""
        routes = [Route("/v2/", self._root), Route("/v2/{name:path}/{kind}/{digest}", self._content, methods=["HEAD"])]
        self.open.set()
        async with served(Starlette(routes=routes)) as url:
            self.name = url.removeprefix("http://")
            try:
                yield
            finally:
                self.open.set()
                self.never.set()

    async def _root(self, _: Request) -> Response:
        self.bases += 1
        await self.open.wait()
        if self.base is not None:
            status, headers = self.base
            return Response(status_code=status, headers=headers)
        return Response(status_code=self.status) if self.status is not None else self._demand()

    async def _content(self, request: Request) -> Response:
        header = request.headers.get("authorization")
        self.asked.append((request.url.path, header))
        await self.open.wait()
        if header in self.silent_to:
            await self.never.wait()
        name, digest = request.path_params["name"], request.path_params["digest"]
        if (instead := self._instead(header or "")) is not None:
            return instead
        if self.challenge is not None and name not in self.rights.get(header or "", self.public):
            return self._demand("" if header is None else ',error="insufficient_scope"')
        if digest == "v1":
            digest = self.tags.get(name, "")
        if digest not in self.content.get(name, ()):
            return Response(status_code=404)
        return Response(headers={"Docker-Content-Digest": digest}, media_type=OCI_MANIFEST)

    def _instead(self, header: str) -> Response | None:
        """Return what it answers to this header, whatever it is asked for."""
        if header in self.troubles:
            status, headers = self.troubles[header]
            return Response(status_code=status, headers=headers)
        if self.status is not None:
            return Response(status_code=self.status)
        if self.page is not None:
            return Response(self.page, media_type="text/html")
        return None if self.location is None else Response(status_code=307, headers={"Location": self.location})

    def _demand(self, more: str = "") -> Response:
        headers = {} if self.challenge is None else {"WWW-Authenticate": self.challenge + more}
        return Response(status_code=200 if self.challenge is None else 401, headers=headers)
