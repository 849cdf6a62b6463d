"""Mutual TLS from a shared key. authority.py makes the certificates; nothing is written to a disk."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from peili.mirror.tls.contexts import TLSContexts, TLSFromFiles, identity_uri, new_contexts
from peili.mirror.tls.issuing import IssuedCertificate, issue_certificate
from peili.mirror.tls.key_file import read_keys

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

    Needs `cryptography`, the extra ``keys``. A certificate is valid for a day and is renewed in time, when a connection
    is made. The file is read again when it changes. If the new content cannot be used, the previous keys stay in use,
    and an error is logged once. The construction, and reading a changed file, take about 0.2 s.

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
        self._renewal: threading.Thread | None = None
        self._next_renewal = 0.0
        self._lock = threading.Lock()  # held while keys and contexts change
        super().__init__(file, log=log)

    @override
    def contexts(self) -> TLSContexts:
        super().contexts()
        age = now() - self._issued_at
        is_renewing = self._renewal is not None and self._renewal.is_alive()
        if not 0 <= age < RENEWAL and not is_renewing and time.monotonic() >= self._next_renewal:
            self._start_renewal(wait=not -SKEW <= age < LIFETIME)  # not valid now: this host slept, or its clock jumped
        return self._current

    def _start_renewal(self, *, wait: bool) -> None:
        self._renewal = threading.Thread(target=self._renew, name="peili certificate", daemon=True)
        try:
            self._renewal.start()
        except RuntimeError:  # no thread is left
            self._next_renewal = time.monotonic() + _RETRY_INTERVAL
            return
        if wait:
            self._renewal.join()

    @override
    def name_to_check(self, tls_name: str | None, host: str) -> str:
        return CLUSTER_NAME

    @override
    def _load(self) -> TLSContexts:
        keys = read_keys(self._file)
        contexts, issued_at = self._issue(keys)
        with self._lock:
            self._keys, self._issued_at = keys, issued_at
        return contexts

    def _renew(self) -> None:
        """Issue a new certificate. Runs in a thread, because that takes longer than the event loop should wait."""
        keys = self._keys
        try:
            contexts, issued_at = self._issue(keys)
        except (OSError, ImportError) as error:  # for example, no file descriptor is left
            self._next_renewal = time.monotonic() + _RETRY_INTERVAL
            self._log.warning("the certificate can't be renewed now: %s", error)
            return
        with self._lock:
            if keys is self._keys:  # else other keys were read in the meantime
                self._current, self._issued_at = contexts, issued_at

    def _issue(self, keys: Sequence[bytes]) -> tuple[TLSContexts, float]:
        """Return contexts with a new certificate, and the time when it was issued."""
        issued_at, contexts = now(), new_contexts()
        issued = issue_certificate(keys, self._uri, CLUSTER_NAME, issued_at - SKEW, issued_at + LIFETIME)
        for context in (contexts.server, contexts.client):
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            context.load_verify_locations(cadata=issued.trusted)
            _load(context, issued)
        return contexts, issued_at


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
