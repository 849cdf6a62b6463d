"""Who may use the peer doors of a laboratory: everyone, or hosts with a shared key, or hosts with certificates.

Each laboratory says what it uses by default. Together, the tests cover all three. PEILI_TEST_TLS (``key`` or
``certificates``) closes the peer doors of all laboratories, except those that test one way in particular.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

from tests.support.certificates import Authority, Certificate

from peili.mirror import PeerCertificates, PeerKeys, PeerTLS
from peili.mirror.tls.key_file import create_key_file

AccessKind = Literal["open", "key", "certificates"]
_VARIABLE = "PEILI_TEST_TLS"


def chosen_access(default: AccessKind = "open") -> AccessKind:
    """Return what PEILI_TEST_TLS says, else `default`.

    Raises:
        ValueError: The variable has another value.
    """
    kind = os.environ.get(_VARIABLE) or default
    if kind not in get_args(AccessKind):
        raise ValueError(f"{_VARIABLE}: one of {', '.join(get_args(AccessKind))}, not {kind!r}")
    return cast("AccessKind", kind)


class Access:
    """The key or the authority of one cluster.

    Args:
        directory: The directory of their files, which need not exist.
        kind: The default is `chosen_access`.

    Attributes:
        scheme: The scheme of the URLs of peers.
    """

    def __init__(self, directory: Path, kind: AccessKind | None = None) -> None:
        self.kind: AccessKind = kind or chosen_access()
        self.scheme = "http" if self.kind == "open" else "https"
        self._directory = directory
        self._issued: dict[str, PeerTLS] = {}
        if self.kind == "key":
            directory.mkdir(parents=True, exist_ok=True)
            create_key_file(self._key)
        elif self.kind == "certificates":
            self._authority = Authority(directory / "authority")

    def section(self, name: str, address: str) -> Mapping[str, Any]:
        """Return the section `[peer]` of the host `name`, whose peers reach it at `address`."""
        match self.kind:
            case "open":
                return {"insecure": True}
            case "key":
                self.peer_tls(name, address)  # issued now, because a test may have no time for it later
                return {"shared_key_file": str(self._key)}
            case "certificates":
                return {"tls": self._certificate(name, address).files()}

    def peer_tls(self, name: str, address: str = "127.0.0.1") -> PeerTLS:
        """Return the TLS of the host `name`, the same each time. The access must not be open."""
        if name not in self._issued:
            self._issued[name] = self._issue(name, address)
        return self._issued[name]

    def peer_tls_factory(self) -> Callable[[str], PeerTLS] | None:
        """Return `peer_tls`; None if the access is open."""
        return None if self.kind == "open" else self.peer_tls

    def client_context(self, name: str, address: str) -> ssl.SSLContext | None:
        """Return a context with which a test connects to peers as the host `name`; None for plain HTTP."""
        if self.kind == "open":
            return None
        context = self.peer_tls(name, address).contexts().client
        context.check_hostname = False  # with a key, no certificate shows an address
        return context

    def _issue(self, name: str, address: str) -> PeerTLS:
        if self.kind == "key":
            return PeerKeys(self._key, name)
        issued = self._certificate(name, address)
        return PeerCertificates(issued.ca, issued.cert, issued.key)

    @property
    def _key(self) -> Path:
        return self._directory / "key"

    def _certificate(self, name: str, address: str) -> Certificate:
        directory = self._directory / "certificates" / name
        return Certificate.below(directory) if directory.exists() else self._authority.issue(directory, address)
