"""Hosts that serve their peer doors with mutual TLS on loopback, and pull from each other."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from tests.support.neighbours import holder_ids
from tests.support.plain_http import plain_client

from peili.mirror import Digest, Limits, Mirror, Peer, PeerKeys, PeerTLS, PushRouter, serve
from peili.mirror.tls.key_file import format_key
from peili.stores.memory import MemoryStore


@dataclass(frozen=True, slots=True)
class TLSHost:
    """A mirror with its doors on loopback."""

    mirror: Mirror
    store: MemoryStore
    router: PushRouter
    local: str
    client: httpx.AsyncClient

    @property
    def url(self) -> str:
        [url] = self.mirror.identity.urls
        return url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def know(self, *others: TLSHost, tls_name: str | None = None) -> None:
        self.router.set([Peer(each.mirror.identity.id, (each.url,), tls_name) for each in others])

    async def pull(self, digest: Digest) -> int:
        """Pull a blob through the local door. Returns the status; 404 means that no peer has sent it."""
        response = await self.client.get(f"{self.local}/v2/registry.example/demo/blobs/{digest}")
        return response.status_code


@asynccontextmanager
async def tls_host(peer_tls: PeerTLS, identity: str | None = None, **limits: float) -> AsyncGenerator[TLSHost]:
    """Run a mirror that knows no peer yet."""
    store, router = MemoryStore(), PushRouter()
    # A busy machine is slow; a peer that refuses us does so at once.
    times = {"backoff_max": 0.2, "drain_timeout": 0.2, "lookup_timeout": 30, "connect_timeout": 30, **limits}
    bounds = Limits(**times, first_byte_timeout=30)  # type: ignore[arg-type]  # times only
    mirror = Mirror(store, router, peer_tls=peer_tls, identity=identity, limits=bounds)
    async with (
        mirror,
        serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving,
        plain_client(trust_env=False, timeout=60) as client,
    ):
        router.set(())
        yield TLSHost(mirror, store, router, f"http://{serving.local_addresses[0]}", client)


def write_keys(path: Path, *keys: bytes) -> Path:
    """Write a key file with `keys` in place of the old one, as a deployment does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.touch(0o600)
    new.write_text("".join(f"{format_key(key)}\n" for key in keys))
    new.rename(path)
    return path


def host_keys(directory: Path, identity: str, *keys: bytes) -> PeerKeys:
    """Return the keys of one host, which has its own file."""
    return PeerKeys(write_keys(directory / f"{identity}.key", *keys), identity)


async def status_at(port: int, context: ssl.SSLContext, name: str, path: str = "/v2/") -> bytes:
    """Send a request over TLS, and return the first line of the response.

    Raises:
        OSError: One of the sides refuses the other.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readline()
        if not line:
            raise ConnectionError("closed without a response")
        return line
    finally:
        writer.transport.abort()


async def until_pulled(host: TLSHost, digest: Digest) -> None:
    """Pull a blob until a peer has sent it: a peer may announce it a moment later."""
    async with asyncio.timeout(60):
        while await host.pull(digest) != 200:
            pass


async def until_found(host: TLSHost, digest: Digest) -> None:
    """Wait until a host finds a blob at a peer."""
    async with asyncio.timeout(60):
        while not await holder_ids(host.router, digest):  # noqa: ASYNC110 - a home learns it without an event
            await asyncio.sleep(0.01)
