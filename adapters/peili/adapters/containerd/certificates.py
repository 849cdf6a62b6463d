"""Certificate files in a registry's directory, named as Docker does.

containerd reads them only while there is no hosts.toml beside them, so a new one has to name them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peili.adapters.leftalone import LeftAlone


def docker_style(directory: Path) -> dict[str, Any]:
    """`ca` and `client` as they would stand in a hosts.toml in `directory`. Raises LeftAlone, OSError."""
    names = sorted(each.name for each in directory.iterdir() if not (each.is_dir() and not each.is_symlink()))
    if strange := next((name for name in names if not _is_text(name)), None):
        raise LeftAlone(f"a certificate's name is not UTF-8: {strange!a}")
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
