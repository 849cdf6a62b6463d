"""Hosts with the resolver ``upstream`` and their registry, all over real sockets."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx
from tests.mirror.upstream.registries import HEADERS, SmallRegistry
from tests.support.neighbours import served
from tests.support.plain_http import plain_client
from tests.support.waiting import until

from peili.mirror import Digest, Limits, Mirror, Plugins, PushRouter, Reference, Requester, serve
from peili.mirror.resolvers import UpstreamResolver
from peili.mirror.upstream.api_roots import ApiRoot
from peili.mirror.upstream.challenges import Challenge
from peili.stores.memory import MemoryStore

V1 = Reference.parse("registry.example/acme/demo:v1")
PATH = "/v2/acme/demo/manifests/v1"
BEARER = Challenge("Bearer", {"realm": "https://auth.example/token", "service": "registry.example"})
TOKEN = Requester("Bearer right")
OLD = b'{"schemaVersion": 2, "config": {}, "layers": [], "annotations": {"n": "old"}}'
NEW = b'{"schemaVersion": 2, "config": {}, "layers": [], "annotations": {"n": "new"}}'
LIMITS = Limits(upstream_timeout=10, first_byte_timeout=20, lookup_timeout=10, connect_timeout=10)


class Registry(SmallRegistry):
    """A registry whose tags a test moves."""

    def __init__(self) -> None:
        super().__init__(404, {}, b"")
        self.answers["/v2/"] = (200, {}, b"")

    def move(self, data: bytes, tag: str = "v1") -> Digest:
        """Let a tag mean the manifest `data` from now on."""
        digest = Digest.of(data)
        self.answers[f"/v2/acme/demo/manifests/{tag}"] = (200, {**HEADERS, "Docker-Content-Digest": digest}, data)
        return digest

    def go_down(self, status: int = 503, **headers: str) -> None:
        """Answer everything with an error."""
        self.answers.clear()
        self.default = (status, headers, b"")


@dataclass
class Host:
    """A mirror with the resolver, and what its runtime sees."""

    mirror: Mirror
    resolver: UpstreamResolver
    store: MemoryStore
    router: PushRouter
    client: httpx.AsyncClient

    async def ask(self, tag: str = "v1", method: str = "HEAD", **headers: str) -> httpx.Response:
        return await self.client.request(
            method, f"/v2/acme/demo/manifests/{tag}", params={"ns": "registry.example"}, headers=headers
        )

    async def digest(self, tag: str = "v1") -> str | None:
        """Return what a tag means; None if the runtime is sent upstream."""
        response = await self.ask(tag)
        return response.headers["docker-content-digest"] if response.status_code == 200 else None

    @property
    def home(self) -> str:
        """The id of the host that this one takes for the home of the tag."""
        home = self.router.home(V1)
        return self.mirror.identity.id if home is None else home.id

    def have(self, data: bytes, reference: Reference = V1) -> Digest:
        """Let the host have an image."""
        descriptor = self.store.add(data)
        self.store.tag(reference, descriptor)
        return descriptor.digest


@dataclass
class Cluster:
    """Hosts that know each other, and their registry."""

    registry: Registry = field(default_factory=Registry)
    hosts: list[Host] = field(default_factory=list[Host])


@asynccontextmanager
async def cluster(
    number: int, *, limits: Limits = LIMITS, registry: Registry | None = None, **options: object
) -> AsyncGenerator[Cluster]:
    made = Cluster(registry or Registry())
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(served(made.registry))
        for n in range(number):
            host = await stack.enter_async_context(single_host(f"host-{n}", url, limits, options))
            made.hosts.append(host)
        for each in made.hosts:
            each.router.set(other.mirror.identity for other in made.hosts if other is not each)
        for each in made.hosts:
            await until(lambda each=each: len(each.router.peers()) == number - 1)  # type: ignore[misc]
        yield made


@asynccontextmanager
async def single_host(name: str, url: str, limits: Limits, options: dict[str, object]) -> AsyncGenerator[Host]:
    resolver = Plugins().resolver("upstream", options)
    assert isinstance(resolver, UpstreamResolver)
    store, router = MemoryStore(), PushRouter()
    mirror = Mirror(
        store, router, resolver, identity=name, insecure=True, limits=limits, upstream_roots=lambda _: [ApiRoot.of(url)]
    )
    async with (
        mirror,
        serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving,
        plain_client(base_url=f"http://{serving.local_addresses[0]}", timeout=60) as client,
    ):
        yield Host(mirror, resolver, store, router, client)


def cover_demo(host: Host) -> None:
    """Let only those who have the right to read the repository. Otherwise, the mirror's option decides that."""

    def covers(registry: str, repository: str) -> bool:
        return repository == "acme/demo"

    running = host.resolver._running  # pyright: ignore[reportPrivateUsage] - as above
    assert running is not None
    object.__setattr__(running.context, "covers", covers)
    object.__setattr__(running.listings._context, "covers", covers)  # pyright: ignore[reportPrivateUsage]
