"""Mutual TLS 1.3 between peers: what the server and the client need.

Each new connection uses the context that is current, and the mirror refreshes it once a second. So renewed certificates
take effect without a restart, and open connections go on. peer_certificates.py has the certificates of the operator,
and peer_keys.py makes certificates from a shared key.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import HTTPConnection
from typing_extensions import override

from peili.mirror.errors import ConfigError
from peili.mirror.tls.identities import PEER_NAMES, identity_in

_REFRESH_INTERVAL = 1.0
_PAUSE = 60.0
"""Seconds after an error of a third-party `PeerTLS.refresh`."""


@dataclass(frozen=True, slots=True)
class TLSContexts:
    """The contexts of new connections between peers. Both must require and verify a certificate of the other side.

    Attributes:
        server: For connections that this host accepts.
        client: For connections that it opens.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext


class PeerTLS(ABC):
    """Mutual TLS between peers. Both sides of a connection show a certificate and verify that of the other.

    Pass it to `Mirror`. Then `serve` serves the peer door with it, the mirror uses it to reach peers, and the peer door
    admits each client with the right certificate. URLs of peers must be https URLs. May be used by several mirrors, on
    any event loop. A subclass may get certificates from elsewhere.

    Attributes:
        identity: The id of this host that its certificate shows; None if it shows none.
    """

    identity: str | None = None

    @abstractmethod
    def contexts(self) -> TLSContexts:
        """Return the contexts for a new connection. Cheap; never raises."""

    async def refresh(self) -> None:  # noqa: B027 - not every subclass has something to do
        """Load new certificates if they are needed. The mirror calls it once a second while it is entered."""

    def name_to_check(self, tls_name: str | None, host: str) -> str:
        """Return the name that the certificate of a peer must show; empty if `check_server` alone decides.

        Args:
            tls_name: The name that the router knows, see `Peer.tls_name`.
            host: The host in the URL of the peer.
        """
        return tls_name or host

    def allows(self, names: Collection[str]) -> bool:
        """Return whether a host whose verified certificate shows `names` is a peer."""
        return True

    def check_server(self, names: Collection[str], name: str) -> None:  # noqa: B027 - OpenSSL checks enough
        """Check the verified certificate of a peer that this host has connected to.

        Args:
            names: The names in the certificate.
            name: What `name_to_check` returned.

        Raises:
            ssl.SSLCertVerificationError: This is not the peer.
        """

    def identity_of(self, names: Collection[str]) -> str | None:
        """Return the id of the peer whose verified certificate shows `names`; None if it shows none."""
        return identity_in(names)

    def admits(self, connection: HTTPConnection) -> bool | str:
        """Return whether the peer door answers a request. It is the `Auth` of a mirror with this object.

        A request that did not come through `serve` is refused, because nothing has verified its client.

        Returns:
            The id of the peer if its certificate shows one, else whether it is admitted.
        """
        if PEER_NAMES not in connection.scope or not self.allows(connection.scope[PEER_NAMES]):
            return False
        return self.identity_of(connection.scope[PEER_NAMES]) or True


@asynccontextmanager
async def refreshing(tls: PeerTLS | None, log: logging.Logger) -> AsyncGenerator[None]:
    """Call ``tls.refresh`` once a second."""
    if tls is None:
        yield
        return
    task = asyncio.create_task(_refresh_forever(tls, log), name="peili TLS")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _refresh_forever(tls: PeerTLS, log: logging.Logger) -> None:
    while True:
        await asyncio.sleep(_REFRESH_INTERVAL)
        try:
            await tls.refresh()
        except Exception:  # a subclass is third-party code
            log.exception("%s failed to refresh its certificates", type(tls).__name__)
            await asyncio.sleep(_PAUSE)


class TLSFromFiles(PeerTLS):
    """Makes new contexts when files change. The previous ones stay in use if that fails, and it is logged once.

    Args:
        paths: The files.
        log: Gets the errors; by default ``peili.tls``.

    Raises:
        ConfigError: A file cannot be used.
    """

    def __init__(self, *paths: Path, log: logging.Logger | None) -> None:
        self._log = log or logging.getLogger("peili.tls")
        self._paths = paths
        self._seen = self._states()
        self._logged = ""
        self._current = self._load()

    @override
    def contexts(self) -> TLSContexts:
        return self._current

    @override
    async def refresh(self) -> None:
        if self._is_outdated():
            await asyncio.to_thread(self._reload)

    def _is_outdated(self) -> bool:
        """Return whether new contexts are needed."""
        return self._states() != self._seen

    def _reload(self) -> None:
        """Load the files again. Called in a thread. If it fails, the next `refresh` tries it again."""
        states = self._states()
        try:
            self._current = self._load()
        except (ConfigError, OSError, ImportError) as error:
            if str(error) != self._logged:
                self._logged = str(error)
                self._log.error("%s; what was read before stays in use", error)
            return
        self._seen, self._logged = states, ""
        self._log.info("read again: %s", ", ".join(map(str, self._paths)))

    def _states(self) -> list[tuple[int, int, int] | None]:
        return [_state(path) for path in self._paths]

    @abstractmethod
    def _load(self) -> TLSContexts:
        """Return new contexts.

        Raises:
            ConfigError: A file cannot be used.
            OSError: No file descriptor is left.
            ImportError: A library is missing.
        """


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def new_contexts() -> TLSContexts:
    """Return contexts for mutual TLS 1.3, without certificates. They trust nobody yet."""
    contexts = TLSContexts(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    for context in (contexts.server, contexts.client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
    contexts.server.num_tickets = 0  # our client never resumes a session
    return contexts
