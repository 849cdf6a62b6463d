"""Mutual TLS from a shared key. authority.py makes the certificates; nothing is written to a disk."""

from __future__ import annotations

import logging
import os
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from peili.mirror.tls.contexts import TLSContexts, TLSFromFiles, identity_uri, new_contexts
from peili.mirror.tls.key_file import read_keys

if TYPE_CHECKING:
    from peili.mirror.tls.authority import HostCertificate

CLUSTER_NAME = "peer.peili.internal"
"""The DNS name in the certificate of each host of a cluster. Nobody looks it up."""
SKEW = 3600.0
"""Seconds by which the clock of a host may be behind that of another one."""
LIFETIME = 24 * 3600.0
"""Seconds for which a certificate is valid."""
RENEWAL = LIFETIME / 2
"""Seconds after which a certificate is renewed. The rest of its life is for hosts whose clocks are ahead."""


class PeerKeys(TLSFromFiles):
    """Mutual TLS with certificates that each host makes from a key, which all hosts of a cluster share.

    Needs `cryptography`, the extra ``keys``. A certificate is valid for a day and is renewed in time, when a connection
    is made. The file is read again when it changes. If the new content cannot be used, the previous keys stay in use,
    and an error is logged once.

    Args:
        file: The file of the key, which ``peili keys new FILE`` makes. Only its owner may read it. With several keys,
            one a line, the first one signs this host's certificate, and hosts with any of them are peers.
        identity: The id of this host, which its certificate shows. The mirror takes it over.
        log: Gets the errors; by default ``peili.tls``.

    Raises:
        ConfigError: The file cannot be used.
        ImportError: `cryptography` is not installed.
    """

    def __init__(self, file: Path, identity: str, *, log: logging.Logger | None = None) -> None:
        from peili.mirror.tls import authority  # noqa: PLC0415 - needs cryptography, which is optional

        self.identity = identity
        self._uri = identity_uri(identity)
        self._file = file
        self._authority = authority
        super().__init__(file, log=log)

    @override
    def contexts(self) -> TLSContexts:
        contexts = super().contexts()
        if self._issued_at <= now() < self._issued_at + RENEWAL:  # false if the clock was set back, too
            return contexts
        try:
            self._current = self._issue()
        except OSError as error:  # no file descriptor is left; the certificate is valid for some hours more
            self._log.warning("the certificate can't be renewed now: %s", error)
        return self._current

    @override
    def name_to_check(self, tls_name: str | None, host: str) -> str:
        return CLUSTER_NAME

    @override
    def _load(self) -> TLSContexts:
        self._authorities = [self._authority.Authority(key) for key in read_keys(self._file)]
        return self._issue()

    def _issue(self) -> TLSContexts:
        issued_at = now()
        contexts, trusted = new_contexts(), self._authority.certificates_of(self._authorities)
        certificate = self._authority.issue_for_host(
            self._authorities, self._uri, CLUSTER_NAME, issued_at - SKEW, issued_at + LIFETIME
        )
        for context in (contexts.server, contexts.client):
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            context.load_verify_locations(cadata=trusted)
            _load(context, certificate)
        self._issued_at = issued_at
        return contexts


def now() -> float:
    """Return the time in seconds since 1970. Tests replace it."""
    return time.time()


def _load(context: ssl.SSLContext, certificate: HostCertificate) -> None:
    """Load a certificate from memory. `load_cert_chain` wants a file, which here exists only in this process."""
    descriptor = os.memfd_create("peili", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(certificate.key + certificate.chain)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
