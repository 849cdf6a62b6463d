"""Mutual TLS 1.3 between peers: what the server and the client need.

Each new connection uses the context that is current, and the mirror refreshes it once a second. So renewed certificates
take effect without a restart, and open connections go on. peer_certificates.py has the certificates of the operator,
and peer_keys.py makes certificates from a shared key.
"""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

from starlette.requests import HTTPConnection
from typing_extensions import override

from peili.mirror.tls.from_files import FromFiles
from peili.mirror.tls.identities import PEER_NAMES, identity_in


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


class TLSFromFiles(FromFiles[TLSContexts], PeerTLS):
    """Makes new contexts when files change. See `FromFiles`."""

    @override
    def contexts(self) -> TLSContexts:
        return self.current


def new_contexts() -> TLSContexts:
    """Return contexts for mutual TLS 1.3, without certificates. They trust nobody yet."""
    contexts = TLSContexts(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    for context in (contexts.server, contexts.client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
    contexts.server.num_tickets = 0  # our client never resumes a session
    return contexts
