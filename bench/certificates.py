"""Certificates for mutual TLS on loopback, made by openssl(1)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from tests.lab.processes import run

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: an authority, and what it has signed for 127.0.0.1, both as a server and as a client."""

    ca: Path
    cert: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """TLS of a server that lets in only whom the authority has signed."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
        context.load_cert_chain(self.cert, self.key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def files(self) -> dict[str, str]:
        """Their paths, for whoever lives in another process."""
        return {"ca": str(self.ca), "cert": str(self.cert), "key": str(self.key)}


def make_certificates(folder: Path) -> Certificates:
    """Write new ones into `folder`, which is made."""
    folder.mkdir()
    made = Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    authority = folder / "ca-key.pem"
    run(["openssl", "req", "-x509", *_KEY, "-subj", "/CN=bench", "-keyout", str(authority), "-out", str(made.ca)])
    signed = ["-CA", str(made.ca), "-CAkey", str(authority), "-addext", "subjectAltName=IP:127.0.0.1"]
    usage = ["-addext", "extendedKeyUsage=serverAuth,clientAuth", "-addext", "basicConstraints=CA:FALSE"]
    ours = ["-subj", "/CN=127.0.0.1", "-keyout", str(made.key), "-out", str(made.cert)]
    run(["openssl", "req", "-x509", *_KEY, *signed, *usage, *ours])
    return made
