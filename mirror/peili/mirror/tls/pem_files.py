"""Loads certificates and keys from PEM files. Each error names the file, which those of OpenSSL do not."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

from peili.mirror.errors import ConfigError


def load_authorities(context: ssl.SSLContext, name: str, file: Path) -> None:
    """Let `context` trust the authorities in `file`.

    Args:
        context: The context.
        name: What the file is called in an error.
        file: The file.

    Raises:
        ConfigError: It has no certificate, or can't be read.
    """
    try:
        context.load_verify_locations(file)
    except OSError as error:  # SSLError is one
        raise ConfigError(name, f"{file} has no usable certificate: {reason(error)}") from error


def load_chain(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Let `context` show the certificate in `cert`, whose private key is in `key` and is not encrypted.

    Raises:
        ConfigError: A file can't be used. Its key is ``cert`` or ``key``.
    """
    for name, path in (("cert", cert), ("key", key)):
        try:
            path.read_bytes()  # the errors of `load_cert_chain` name no file
        except OSError as error:
            raise ConfigError(name, f"{path} can't be read: {reason(error)}") from error
    try:
        context.load_cert_chain(cert, key, password="")  # else OpenSSL asks on the terminal
    except OSError as error:
        expected = f"a certificate and its private key, both PEM; {cert} and {key} are not"
        raise ConfigError("cert", f"{expected}: {reason(error)}") from error


def check_private(name: str, key: Path) -> None:
    """Check that nobody but its owner may read the file of a private key. A file that is missing is reported elsewhere.

    A device is refused, too: nobody should change the mode of that.

    Args:
        name: What the file is called in the error.
        key: The file.

    Raises:
        ConfigError: Others may read it, or it is no regular file.
    """
    try:
        mode = key.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise ConfigError(name, f"a file; {key} is something else")
    if mode & 0o077:
        raise ConfigError(name, f"a file that only its owner may read; chmod 600 {key}")


def reason(error: OSError) -> str:
    """Return in a few words what went wrong."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return (error.strerror or type(error).__name__).lower()
