"""A small registry whose answers a test controls, served by a real server, and clients that ask it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tests.support.neighbours import served_together

from peili.mirror import Descriptor, Digest, Limits
from peili.mirror.oci.references import OCI_MANIFEST
from peili.mirror.oci.requests import Endpoint
from peili.mirror.upstream.answers import Question, Readable
from peili.mirror.upstream.api_roots import ApiRoot
from peili.mirror.upstream.client import UpstreamClient

MANIFEST = b'{"schemaVersion": 2, "config": {}, "layers": []}'
DIGEST = Digest.of(MANIFEST)
HEADERS = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": DIGEST}
READABLE = Readable(Descriptor(OCI_MANIFEST, DIGEST, len(MANIFEST)))
PATIENT = Limits(upstream_timeout=20, connect_timeout=20)
HASTY = Limits(upstream_timeout=0.2)
BY_TAG = Question("registry.example", "acme/demo", Endpoint.MANIFEST, "v1")
WITH_TOKEN = replace(BY_TAG, authorization="Bearer secret")


class SmallRegistry:
    """A registry that gives one answer to everything, unless `answers` has another one for a path.

    Attributes:
        most_at_once: The largest number of requests that were waiting or answered at the same time.
        asked: The requests: method, path and Authorization header.
        queries: The query of each request.
        answers: Statuses, headers and bodies by path.
        open: While it is not set, requests wait.
        url: Its base URL, while it is served.
    """

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None, body: bytes = MANIFEST) -> None:
        self.default = (status, HEADERS if headers is None else headers, body)
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.at_once = self.most_at_once = 0
        self.asked: list[tuple[str, str, str | None]] = []
        self.queries: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.url = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.asked.append((request.method, request.url.path, request.headers.get("authorization")))
        self.queries.append(request.url.query)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await self.open.wait()
        self.at_once -= 1
        status, headers, body = self.answers.get(request.url.path, self.default)
        await Response(body, status, headers)(scope, receive, send)

    @property
    def root(self) -> ApiRoot:
        return ApiRoot.of(self.url)

    @property
    def heads(self) -> int:
        """How often it was asked for a manifest or a blob."""
        return sum(method == "HEAD" for method, _, _ in self.asked)


@asynccontextmanager
async def registries(*them: SmallRegistry, limits: Limits = PATIENT) -> AsyncGenerator[UpstreamClient]:
    """Serve the registries, the roots of every registry, and yield a client that asks them in this order."""
    async with served_together(*them) as urls:
        for each, url in zip(them, urls, strict=True):
            each.url = url
        try:
            async with UpstreamClient(limits, roots=lambda _: [each.root for each in them]) as client:
                yield client
        finally:
            for each in them:
                each.open.set()
