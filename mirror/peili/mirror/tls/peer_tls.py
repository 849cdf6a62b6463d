"""Mutual TLS 1.3 between peers: what the server and the client need, and the certificates of the operator.

Each new connection uses the context that is current, and the mirror refreshes it once a second. So renewed certificates
take effect without a restart, and open connections go on. peer_keys.py makes the certificates from a shared key.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from starlette.requests import HTTPConnection
from typing_extensions import override

from peili.mirror.errors import ConfigError
from peili.mirror.support.options import compile_patterns

PEER_NAMES: Final = "peili.peer_names"
"""The key of an ASGI scope below which `serve` stores the names in the verified certificate of the client."""
PEER_IDENTITY: Final = "peili.peer_identity"
"""The key of an ASGI scope below which the peer door stores the id that its `Auth` returned."""
_IDENTITY_PREFIX = "peili:"
_NAME_KINDS = frozenset({"DNS", "URI", "IP Address"})
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
        return _identity_in(names)

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


class PeerCertificates(TLSFromFiles):
    """Mutual TLS with certificates that the operator has.

    The files are read again when they change. If the new ones cannot be used, the previous ones stay in use, and an
    error is logged once.

    Args:
        ca: The certificates of the authorities that issue the certificates of peers, as a PEM file.
        cert: The certificate of this host, for servers and clients, and the chain that leads to `ca`. A PEM file.
        key: The private key of the certificate, not encrypted. A PEM file.
        names: Regular expressions. One of them must match a whole DNS name, URI (for example a SPIFFE id) or IP address
            of a peer's certificate. Without `names`, each client with a certificate of `ca` is admitted, and a peer's
            certificate must show `Peer.tls_name` or the host of its URL. With `names`, that host is not checked. If an
            expression has a group that is called ``id``, the group is the id of the peer, as in
            ``spiffe://cluster/node/(?P<id>.+)``. Each host must then have the id that its certificate shows.
        crl: The lists of revoked certificates, as a PEM file: one of each authority that issues certificates of peers.
            While a list is missing or has expired, no certificate of its authority is accepted. None means that
            revocation is not checked.
        log: Gets the errors; by default ``peili.tls``.

    Raises:
        ConfigError: A file cannot be used, or a regular expression is malformed.
    """

    def __init__(
        self,
        ca: Path,
        cert: Path,
        key: Path,
        names: Iterable[str] = (),
        *,
        crl: Path | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        self._ca, self._cert, self._key, self._crl = ca, cert, key, crl
        self._patterns = compile_patterns("names", names)
        super().__init__(ca, cert, key, *([] if crl is None else [crl]), log=log)

    @override
    def name_to_check(self, tls_name: str | None, host: str) -> str:
        return (tls_name or "") if self._patterns else super().name_to_check(tls_name, host)

    @override
    def allows(self, names: Collection[str]) -> bool:
        return not self._patterns or any(pattern.fullmatch(name) for pattern in self._patterns for name in names)

    @override
    def identity_of(self, names: Collection[str]) -> str | None:
        matches = [pattern.fullmatch(name) for pattern in self._patterns for name in names]
        found = {each["id"] for each in matches if each is not None and "id" in each.re.groupindex}
        return found.pop() if len(found) == 1 else super().identity_of(names)

    @override
    def check_server(self, names: Collection[str], name: str) -> None:
        if not self._patterns:
            return  # OpenSSL has checked `name`
        if not self.allows(names):
            raise ssl.SSLCertVerificationError(f"not the certificate of a peer; it shows {', '.join(names)}")
        if name and name.lower() not in {each.lower() for each in names}:
            raise ssl.SSLCertVerificationError(f"the certificate does not show {name}")

    @override
    def _load(self) -> TLSContexts:
        contexts = new_contexts()
        for context in (contexts.server, contexts.client):
            try:
                context.load_verify_locations(self._ca)
            except OSError as error:  # SSLError is one
                raise ConfigError("ca", f"{self._ca} has no usable certificate: {_reason(error)}") from error
            if self._crl is not None:
                _load_crl(context, self._crl)
            self._load_chain(context)
        contexts.client.check_hostname = not self._patterns
        return contexts

    def _load_chain(self, context: ssl.SSLContext) -> None:
        for key, path in (("cert", self._cert), ("key", self._key)):
            try:
                path.read_bytes()  # the errors of `load_cert_chain` name no file
            except OSError as error:
                raise ConfigError(key, f"{path} can't be read: {_reason(error)}") from error
        try:
            context.load_cert_chain(self._cert, self._key, password="")  # else OpenSSL asks on the terminal
        except OSError as error:
            expected = f"a certificate and its private key, both PEM; {self._cert} and {self._key} are not"
            raise ConfigError("cert", f"{expected}: {_reason(error)}") from error


def _load_crl(context: ssl.SSLContext, file: Path) -> None:
    """Let `context` refuse the certificates in the lists in `file`. Raises ConfigError."""
    before = context.cert_store_stats()
    try:
        context.load_verify_locations(file)
    except OSError as error:
        raise ConfigError("crl", f"{file} has no usable list of revoked certificates: {_reason(error)}") from error
    after = context.cert_store_stats()
    if after["crl"] == before["crl"]:
        raise ConfigError("crl", f"{file} has no list of revoked certificates")
    if after["x509"] != before["x509"]:  # it would be trusted
        raise ConfigError("crl", f"{file} must have lists of revoked certificates only, and no certificate")
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


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


def certificate_names(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the DNS names, URIs and IP addresses in a verified certificate.

    Args:
        certificate: What `ssl.SSLSocket.getpeercert` returned.
    """
    alternatives = (certificate or {}).get("subjectAltName", ())
    return frozenset(name for kind, name in alternatives if kind in _NAME_KINDS)


def identity_uri(identity: str) -> str:
    """Return the URI that shows the id of a host in its certificate."""
    return _IDENTITY_PREFIX + quote(identity, safe="")


def peer_identity(connection: HTTPConnection) -> str | None:
    """Return the id of the host that sent a request to the peer door.

    It is what the `Auth` of the mirror returned, if that was an id. With `PeerTLS`, it is the id that the verified
    certificate of the host shows. Certificates of a `PeerKeys` show an id. Other certificates show one with a URI such
    as ``peili:node-1``, or as `PeerCertificates` describes. None if no id is known.
    """
    if PEER_IDENTITY in connection.scope:
        return str(connection.scope[PEER_IDENTITY])
    return _identity_in(connection.scope.get(PEER_NAMES, ()))  # the `Auth` itself may ask


def has_proven_itself(connection: HTTPConnection) -> bool:
    """Return whether it is known which host sent a request: it has shown a certificate, or the `Auth` knows its id."""
    return PEER_NAMES in connection.scope or PEER_IDENTITY in connection.scope


def _identity_in(names: Collection[str]) -> str | None:
    found = [name for name in names if name.startswith(_IDENTITY_PREFIX)]
    return unquote(found[0].removeprefix(_IDENTITY_PREFIX)) if len(found) == 1 else None


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return (error.strerror or type(error).__name__).lower()
