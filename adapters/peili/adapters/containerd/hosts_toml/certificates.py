"""The certificate files of a registry's directory.

Those that are named as Docker does containerd reads only while there is no hosts.toml beside them, so a new one has to
name them. Where one that counts can't be used, containerd asks nobody.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from peili.adapters.containerd.hosts_toml.meaning import Host
from peili.adapters.files.editor import Ambiguous, CannotEdit

_BEGIN = b"-----BEGIN CERTIFICATE-----"


def docker_style(directory: Path) -> dict[str, Any]:
    """`ca` and `client` as they would stand in a hosts.toml in `directory`. Raises CannotEdit, OSError."""
    names = sorted(each.name for each in directory.iterdir() if not (each.is_dir() and not each.is_symlink()))
    if strange := next((name for name in names if not _is_text(name)), None):
        raise CannotEdit(f"a certificate's name is not UTF-8: {strange!a}")
    authorities = [name for name in names if name.endswith(".crt")]
    pairs = [[name, _key(directory, name)] for name in names if name.endswith(".cert")]
    return {key: value for key, value in (("ca", authorities), ("client", pairs)) if value}


def _key(directory: Path, certificate: str) -> str:
    """The name of its key's file. Without one the key is in the certificate's own."""
    name = certificate.removesuffix(".cert") + ".key"
    return name if (directory / name).exists() else certificate


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def unusable(hosts: Iterable[Host]) -> str | None:
    """What certificate or key containerd can't use, and so asks none of `hosts`; None where there is no such.

    Raises Ambiguous.
    """
    for host in hosts:
        for name, value in host.values.items():
            for pair in _pairs(value) if name in {"ca", "client"} else ():
                if why := _unusable(name, pair):
                    return why
    return None


def _pairs(value: str | list[Any]) -> list[list[str]]:
    return [[each] if isinstance(each, str) else each for each in ([value] if isinstance(value, str) else value)]


def _unusable(kind: str, paths: Sequence[str]) -> str | None:
    for path in paths:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            return f"{path} can't be read: {error.strerror}"
        if path == paths[0] and _BEGIN not in data:
            return f"{path} has no certificate"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if kind == "ca":
            context.load_verify_locations(paths[0])
        else:
            context.load_cert_chain(paths[0], paths[-1], password=lambda: b"")  # else it would ask whoever sits there
    except (ssl.SSLError, OSError, ValueError) as error:
        raise Ambiguous(f"{' and '.join(paths)} may be no certificate that can be used") from error
    return None
