"""Certificates of a cluster, made with openssl(1): an authority and the certificates that it issues.

They have all the extensions that RFC 5280 requires. Python checks these from version 3.13 on.
"""

from __future__ import annotations

import datetime as dt
import ssl
import subprocess
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

_NEW = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
_AUTHORITY_EXTENSIONS = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
_NODE_EXTENSIONS = ("-addext", "basicConstraints=CA:FALSE", "-addext", "extendedKeyUsage=serverAuth,clientAuth")


@dataclass(frozen=True, slots=True)
class Certificate:
    """The certificate of a node, as PEM files. It is valid for servers and clients.

    Attributes:
        ca: The certificate of the authority.
        cert: The certificate of the node.
        key: The private key of the node.
    """

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def below(cls, directory: Path) -> Certificate:
        """Return the certificate whose files are in `directory`. The files need not exist yet."""
        return cls(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")

    def files(self) -> dict[str, str]:
        """Return the paths as a dictionary, which can be passed to another process as JSON."""
        return {"ca": str(self.ca), "cert": str(self.cert), "key": str(self.key)}

    def client_context(self) -> ssl.SSLContext:
        """Return a context for the connections that the node opens."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.cert, self.key)
        return context

    def server_context(self) -> ssl.SSLContext:
        """Return a context for the connections that the node accepts. Clients need a certificate of the authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
        context.load_cert_chain(self.cert, self.key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


class Authority:
    """A new certificate authority.

    Args:
        directory: The directory of its files. The constructor creates it.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.cert, self._key = directory / "ca.pem", directory / "ca-key.pem"
        _create(self.cert, self._key, "authority", *_AUTHORITY_EXTENSIONS)

    def issue(self, directory: Path, address: str, *others: str) -> Certificate:
        """Issue a certificate for a node.

        Args:
            directory: The directory of its files. This method creates it.
            address: The IP address or DNS name of the node.
            others: Further addresses, names and URIs of the node.
        """
        directory.mkdir(parents=True)
        issued = Certificate.below(directory)
        issued.ca.write_bytes(self.cert.read_bytes())
        signed = ("-CA", str(self.cert), "-CAkey", str(self._key))
        names = "subjectAltName=" + ",".join(map(_general_name, (address, *others)))
        _create(issued.cert, issued.key, address, *signed, *_NODE_EXTENSIONS, "-addext", names)
        return issued

    def write_revocations(self, file: Path, *revoked: Certificate, days: int = 1) -> None:
        """Write the list of the certificates that are revoked, in place of an older one.

        Args:
            file: The PEM file.
            revoked: The certificates.
            days: When the list expires, in days from now.
        """
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateRevocationListBuilder().last_update(now - dt.timedelta(days=2))
        builder = builder.next_update(now + dt.timedelta(days=days))
        builder = builder.issuer_name(x509.load_pem_x509_certificate(self.cert.read_bytes()).subject)
        for each in revoked:
            serial = x509.load_pem_x509_certificate(each.cert.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        key = load_pem_private_key(self._key.read_bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        new = file.with_suffix(".new")
        new.write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
        new.rename(file)


def make_certificate(directory: Path, address: str = "127.0.0.1") -> Certificate:
    """Issue a certificate for the node at `address`, by a new authority. Both are stored below `directory`."""
    return Authority(directory / "authority").issue(directory / "node", address)


def _general_name(name: str) -> str:
    if "://" in name:
        return f"URI:{name}"
    try:
        return f"IP:{ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"


def _create(cert: Path, key: Path, name: str, *options: str) -> None:
    """Create a certificate and its key.

    Raises:
        subprocess.CalledProcessError: openssl failed.
    """
    files = ("-keyout", str(key), "-out", str(cert))
    subject = f"/CN={name}" if "/" not in name else "/CN=node"
    subprocess.run([*_NEW, *files, "-subj", subject, *options], check=True, capture_output=True)
