"""Certificates as a cluster has them, made by openssl(1): an authority, and whom it vouches for.

They say all that RFC 5280 has them say, which Python insists on from 3.13 on.
"""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

_NEW = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
_OF_AN_AUTHORITY = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
_OF_A_NODE = ("-addext", "basicConstraints=CA:FALSE", "-addext", "extendedKeyUsage=serverAuth,clientAuth")


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a node has, as PEM files: its authority's certificate, its own, for servers and clients, and the key."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def below(cls, directory: Path) -> Certificate:
        """The one that is, or shall be, in `directory`."""
        return cls(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")

    def files(self) -> dict[str, str]:
        """Their paths, for whoever lives in another process."""
        return {"ca": str(self.ca), "cert": str(self.cert), "key": str(self.key)}

    def client_context(self) -> ssl.SSLContext:
        """For connections that a node makes."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.cert, self.key)
        return context

    def server_context(self) -> ssl.SSLContext:
        """For connections that a node takes, from those only whom the authority vouches for."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
        context.load_cert_chain(self.cert, self.key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


class Authority:
    """A new one, in `directory`, which is made."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.cert, self._key = directory / "ca.pem", directory / "ca-key.pem"
        _make(self.cert, self._key, "authority", *_OF_AN_AUTHORITY)

    def issue(self, directory: Path, address: str, *others: str) -> Certificate:
        """A certificate of the node at `address`, in `directory`, which is made. `others` are more addresses and names
        that it has.
        """
        directory.mkdir(parents=True)
        issued = Certificate.below(directory)
        issued.ca.write_bytes(self.cert.read_bytes())
        signed = ("-CA", str(self.cert), "-CAkey", str(self._key))
        names = "subjectAltName=" + ",".join(map(_general_name, (address, *others)))
        _make(issued.cert, issued.key, address, *signed, *_OF_A_NODE, "-addext", names)
        return issued


def make_certificate(directory: Path, address: str = "127.0.0.1") -> Certificate:
    """One of a node at `address`, below `directory`, by an authority that vouches for nobody else."""
    return Authority(directory / "authority").issue(directory / "node", address)


def _general_name(name: str) -> str:
    try:
        return f"IP:{ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"


def _make(cert: Path, key: Path, name: str, *options: str) -> None:
    """Raises subprocess.CalledProcessError."""
    files = ("-keyout", str(key), "-out", str(cert))
    subprocess.run([*_NEW, *files, "-subj", f"/CN={name}", *options], check=True, capture_output=True)
