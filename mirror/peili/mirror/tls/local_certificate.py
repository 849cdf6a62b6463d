"""The certificate of the local door, from files."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from typing_extensions import override

from peili.mirror.tls.from_files import FromFiles
from peili.mirror.tls.pem_files import check_private, load_authorities, load_chain


class LocalCertificate(FromFiles[ssl.SSLContext]):
    """The certificate of a local door with TLS, for `serve`.

    The files are read again when they change: new connections use what is new, and transfers go on. If the new files
    cannot be used, the previous ones stay in use, and an error is logged once.

    Args:
        cert: The certificate, and the chain that leads to an authority that the runtime trusts. A PEM file.
        key: The private key of the certificate, not encrypted. A PEM file, which only its owner may read.
        client_ca: The authorities of the certificates that clients must show, as a PEM file. None means that clients
            need no certificate.
        log: Gets the errors; by default ``peili.tls``.

    Attributes:
        current: The context of new connections.

    Raises:
        ConfigError: A file cannot be used, or others may read the private key.
    """

    def __init__(
        self, cert: Path, key: Path, client_ca: Path | None = None, *, log: logging.Logger | None = None
    ) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        super().__init__(cert, key, *([] if client_ca is None else [client_ca]), log=log)

    @override
    def _load(self) -> ssl.SSLContext:
        check_private("key", self._key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_chain(context, self._cert, self._key)
        if self._client_ca is not None:
            load_authorities(context, "client_ca", self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context
