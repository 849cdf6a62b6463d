"""Certificates as a cluster has them: an authority, and a node that it vouches for."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def make_authority(directory: Path, name: str = "cluster") -> Path:
    """A directory with a new authority: ca.pem and its ca-key.pem."""
    directory.mkdir(parents=True, exist_ok=True)
    out = ("-keyout", directory / "ca-key.pem", "-out", directory / "ca.pem")
    _openssl("req", "-x509", *_KEY, "-subj", f"/CN={name}", "-days", "2", *out)
    return directory


def make_node(authority: Path, directory: Path, address: str) -> Path:
    """A directory with what a node has: ca.pem, and cert.pem for its `address` with key.pem."""
    directory.mkdir(parents=True, exist_ok=True)
    signed = ("-CA", authority / "ca.pem", "-CAkey", authority / "ca-key.pem", "-days", "2")
    names = ("-subj", f"/CN={address}", "-addext", f"subjectAltName=IP:{address}")
    out = ("-keyout", directory / "key.pem", "-out", directory / "cert.pem")
    _openssl("req", "-x509", *_KEY, *names, *signed, *out)
    (directory / "ca.pem").write_bytes((authority / "ca.pem").read_bytes())
    return directory


def client_context(node: Path) -> ssl.SSLContext:
    """For connections that a node makes."""
    context = ssl.create_default_context(cafile=str(node / "ca.pem"))
    context.load_cert_chain(node / "cert.pem", node / "key.pem")
    return context


def server_context(node: Path) -> ssl.SSLContext:
    """For connections that a node takes, from other nodes only."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(node / "ca.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(node / "cert.pem", node / "key.pem")
    return context
