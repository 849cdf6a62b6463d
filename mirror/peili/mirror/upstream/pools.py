"""Pools of connections to registries. Those with the same certificates share one; if a file changes, a new one is made.

It uses httpx, which knows proxies. Connections to peers have a client of their own, which is faster.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TypeAlias

import httpx

from peili.mirror.limits import Limits
from peili.mirror.support.threads import DaemonThreads
from peili.mirror.upstream.api_roots import ApiRoot
from peili.mirror.upstream.exchanges import MOST_CHECKS, USER_AGENT, CannotAsk
from peili.mirror.upstream.registries import Standing

_KEEP_ALIVE = 30.0
"""Seconds for which an unused connection is kept."""
_UNUSED_CONNECTIONS = 4
_MOST_POOLS = 64
"""Registries with certificates of their own that are used at the same time."""

_FileState: TypeAlias = tuple[int, int, int] | None
"""Inode, size and modification time of a file; None if there is none."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What roots have in common that share a pool.

    Attributes:
        uses_tls: Whether the scheme is https.
        ca: As in `ApiRoot`, like the next ones.
        client: The certificates that are shown, and their keys.
        skip_verify: Whether each certificate is accepted.
        is_assumed: Whether the addresses are checked.
    """

    uses_tls: bool
    ca: tuple[Path, ...]
    client: tuple[tuple[Path, Path], ...]
    skip_verify: bool
    is_assumed: bool

    @classmethod
    def of(cls, root: ApiRoot) -> _Kind:
        return cls(root.url.startswith("https:"), root.ca, root.client, root.skip_verify, root.is_assumed)

    def file_states(self) -> tuple[_FileState, ...]:
        """Return what changes when a file is replaced. Blocks for a few calls of ``stat`` for local files."""
        if not self.uses_tls:
            return ()
        system = ssl.get_default_verify_paths().cafile or ""  # None if there is no such file
        files = [*self.ca, *(each for pair in self.client for each in pair)]
        return tuple(_state(each) for each in ([*files, Path(system)] if system else files))

    def tls_context(self) -> ssl.SSLContext:
        """Return the context for connections. Blocks. Raises OSError if a file can't be read or has no certificate."""
        if not self.uses_tls:
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the system's authorities take long to load
        context = ssl.create_default_context()  # the system's authorities, also if there are more
        for file in self.ca:
            context.load_verify_locations(cafile=file)
        for certificate, key in self.client:
            context.load_cert_chain(certificate, key, password="")  # else OpenSSL asks on the terminal
        if self.skip_verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


@dataclass(slots=True, eq=False)
class _Pool:
    """A pool, the state of its files when they were read, and how many requests use it."""

    client: httpx.AsyncClient
    files: tuple[_FileState, ...]
    users: int = 0


class ConnectionPools:
    """The pools of all registries. Used on one event loop, concurrently. Call `aclose` at the end.

    Args:
        limits: ``connect_timeout`` and ``upstream_requests``, the number of connections.
        threads: Reads certificates.
    """

    def __init__(self, limits: Limits, threads: DaemonThreads) -> None:
        self._limits = limits
        self._threads = threads
        self._newest: dict[_Kind, _Pool] = {}
        self._open: set[_Pool] = set()  # those, and older ones that are still used
        self._is_closed = False

    async def aclose(self) -> None:
        """Close all connections. Requests that are under way fail. Idempotent."""
        self._is_closed = True
        self._newest.clear()
        while self._open:
            await self._open.pop().client.aclose()

    @asynccontextmanager
    async def lend(self, root: ApiRoot) -> AsyncGenerator[httpx.AsyncClient]:
        """Lend the pool of `root` for one request. Its certificates are those that are in the files now.

        Raises:
            CannotAsk: A file or a setting of this host can't be used.
        """
        pool = await self._find(_Kind.of(root))
        pool.users += 1
        try:
            yield pool.client
        finally:
            pool.users -= 1
            await self._close_unused()

    async def _find(self, kind: _Kind) -> _Pool:
        files = kind.file_states()  # before they are read, so that a change meanwhile is noticed
        if (known := self._newest.get(kind)) is not None and known.files == files:
            return known
        try:
            context = await self._threads.run(kind.tls_context)
        except OSError as error:  # ssl.SSLError is one
            raise CannotAsk(f"a certificate can't be used: {error}") from error
        if self._is_closed:
            raise CannotAsk("the mirror is not running")
        known = self._newest.get(kind)
        if known is not None and known.files == files:
            return known  # another task was faster
        if known is None and len(self._newest) >= _MOST_POOLS:
            self._forget_unused()
        pool = self._newest[kind] = _Pool(self._new_client(context), files)
        self._open.add(pool)
        return pool

    def _forget_unused(self) -> None:
        """Forget the pool that was made first of those that no request uses. Raises CannotAsk if all are used."""
        unused = next((kind for kind, pool in self._newest.items() if not pool.users), None)
        if unused is None:
            raise CannotAsk(f"more than {_MOST_POOLS} registries with certificates of their own are asked at once")
        del self._newest[unused]

    async def _close_unused(self) -> None:
        """Close pools whose certificates were replaced, and forgotten ones, as soon as no request uses them."""
        newest = self._newest.values()
        for pool in [each for each in self._open if not each.users and each not in newest]:
            self._open.discard(pool)
            await pool.client.aclose()

    def _new_client(self, context: ssl.SSLContext) -> httpx.AsyncClient:
        """Return a new pool. Raises CannotAsk."""
        most = self._limits.upstream_requests
        try:
            return httpx.AsyncClient(
                verify=context,
                # One requester's cookies are not for the next one.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                limits=httpx.Limits(
                    max_connections=len(Standing) * (most + 2 * MOST_CHECKS),  # see `UpstreamClient`
                    max_keepalive_connections=min(most, _UNUSED_CONNECTIONS),
                    keepalive_expiry=_KEEP_ALIVE,
                ),
                timeout=httpx.Timeout(None, connect=self._limits.connect_timeout),  # the caller bounds the rest
            )
        except (ValueError, ImportError) as error:
            raise CannotAsk(f"a variable such as HTTPS_PROXY can't be used: {error}") from error


def _state(file: Path) -> _FileState:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
