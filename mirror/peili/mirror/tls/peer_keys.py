"""Mutual TLS from a shared key. authority.py makes the certificates; nothing is written to a disk."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from peili.mirror.tls.identities import identity_uri
from peili.mirror.tls.issuing import IssuedCertificate, issue_certificate
from peili.mirror.tls.key_file import read_keys
from peili.mirror.tls.peer_tls import TLSContexts, TLSFromFiles, new_contexts

CLUSTER_NAME = "peer.peili.internal"
"""The DNS name in the certificate of each host of a cluster. Nobody looks it up."""
SKEW = 3600.0
"""Seconds by which the clock of a host may be behind that of another one."""
LIFETIME = 24 * 3600.0
"""Seconds for which a certificate is valid."""
RENEWAL = LIFETIME / 2
"""Seconds after which a certificate is renewed. The rest of its life is for hosts whose clocks are ahead."""
_RETRY_INTERVAL = 60.0
"""Seconds until the next attempt if a certificate could not be renewed."""


class PeerKeys(TLSFromFiles):
    """Mutual TLS with certificates that each host makes from a key, which all hosts of a cluster share.

    Needs `cryptography`, the extra ``keys``. A certificate is valid for a day and is renewed in time. The file is read
    again when it changes. If the new content cannot be used, the previous keys stay in use, and an error is logged
    once. The construction takes about 0.2 s.

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
        self.identity = identity
        self._uri = identity_uri(identity)
        self._file = file
        self._next_renewal = 0.0
        super().__init__(file, log=log)

    @override
    def _is_outdated(self) -> bool:
        is_due = not self._is_fresh() and time.monotonic() >= self._next_renewal
        return is_due or super()._is_outdated()

    def _is_fresh(self) -> bool:
        return 0 <= now() - self._issued_at < RENEWAL  # false if the clock was set back, too

    @override
    def _reload(self) -> None:
        super()._reload()
        if not self._is_fresh():  # the file cannot be used now
            try:
                self.current = self._issue(self._keys)
            except (OSError, ImportError) as error:  # for example, no file descriptor is left
                self._next_renewal = time.monotonic() + _RETRY_INTERVAL
                self._log.warning("the certificate can't be renewed now: %s", error)

    @override
    def name_to_check(self, tls_name: str | None, host: str) -> str:
        return CLUSTER_NAME

    @override
    def _load(self) -> TLSContexts:
        keys = read_keys(self._file)
        contexts = self._issue(keys)
        self._keys = keys
        return contexts

    def _issue(self, keys: Sequence[bytes]) -> TLSContexts:
        """Return contexts with a new certificate."""
        issued_at, contexts = now(), new_contexts()
        issued = issue_certificate(keys, self._uri, CLUSTER_NAME, issued_at - SKEW, issued_at + LIFETIME)
        for context in (contexts.server, contexts.client):
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            context.load_verify_locations(cadata=issued.trusted)
            _load(context, issued)
        self._issued_at = issued_at
        return contexts


def now() -> float:
    """Return the time in seconds since 1970. Tests replace it."""
    return time.time()


def _load(context: ssl.SSLContext, issued: IssuedCertificate) -> None:
    """Load a certificate from memory. `load_cert_chain` wants a file, which here exists only in this process."""
    descriptor = os.memfd_create("peili", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "w") as file:
        file.write(issued.key + issued.chain)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
