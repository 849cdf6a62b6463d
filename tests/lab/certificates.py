"""A certificate authority of the laboratory's own, made by openssl."""

from __future__ import annotations

import ssl
from pathlib import Path

from tests.lab.processes import run

_NEW = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]


class Certificates:
    """Below `directory`: ``ca.crt`` and, signed by it, ``server.crt`` (for `address`), ``client.cert``, and keys."""

    def __init__(self, directory: Path, address: str) -> None:
        directory.mkdir(parents=True)
        self.authority, self._authority_key = directory / "ca.crt", directory / "ca.key"
        self.server, self.server_key = directory / "server.crt", directory / "server.key"
        self.client, self.client_key = directory / "client.cert", directory / "client.key"
        files = ["-keyout", str(self._authority_key), "-out", str(self.authority)]
        run([*_NEW, *files, "-subj", "/CN=laboratory"])
        self._sign("server", self.server, self.server_key, "-addext", f"subjectAltName=IP:{address}")
        self._sign("client", self.client, self.client_key, "-addext", "extendedKeyUsage=clientAuth")

    def of_server(self) -> dict[str, Path]:
        """What a server needs to know."""
        return {"server": self.server, "key": self.server_key, "authority": self.authority}

    def client_context(self) -> ssl.SSLContext:
        """For who connects to the server."""
        context = ssl.create_default_context(cafile=self.authority)
        context.load_cert_chain(self.client, self.client_key)
        return context

    def _sign(self, name: str, certificate: Path, key: Path, *options: str) -> None:
        authority = ["-CA", str(self.authority), "-CAkey", str(self._authority_key)]
        files = ["-keyout", str(key), "-out", str(certificate)]
        run([*_NEW, *authority, *files, "-subj", f"/CN={name}", "-addext", "basicConstraints=CA:FALSE", *options])
