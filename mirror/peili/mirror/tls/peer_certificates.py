"""Mutual TLS between peers with the certificates that the operator has."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Collection, Iterable
from pathlib import Path

from typing_extensions import override

from peili.mirror.errors import ConfigError
from peili.mirror.support.options import compile_patterns
from peili.mirror.tls.peer_tls import TLSContexts, TLSFromFiles, new_contexts
from peili.mirror.tls.pem_files import load_authorities, load_chain, reason


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
            load_authorities(context, "ca", self._ca)
            if self._crl is not None:
                _load_crl(context, self._crl)
            load_chain(context, self._cert, self._key)
        contexts.client.check_hostname = not self._patterns
        return contexts


def _load_crl(context: ssl.SSLContext, file: Path) -> None:
    """Let `context` refuse the certificates in the lists in `file`. Raises ConfigError."""
    before = context.cert_store_stats()
    try:
        context.load_verify_locations(file)
    except OSError as error:
        raise ConfigError("crl", f"{file} has no usable list of revoked certificates: {reason(error)}") from error
    after = context.cert_store_stats()
    if after["crl"] == before["crl"]:
        raise ConfigError("crl", f"{file} has no list of revoked certificates")
    if after["x509"] != before["x509"]:  # it would be trusted
        raise ConfigError("crl", f"{file} must have lists of revoked certificates only, and no certificate")
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
