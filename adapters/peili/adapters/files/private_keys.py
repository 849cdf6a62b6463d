"""Checks the files of private keys that others made. `peili.mirror` checks the shared key itself."""

from __future__ import annotations

from pathlib import Path

from peili.mirror import ConfigError


def check_private(name: str, key: Path) -> None:
    """Check that nobody but its owner may read the file of a private key. A file that is missing is reported elsewhere.

    Raises:
        ConfigError: Others may read it.
    """
    try:
        mode = key.stat().st_mode
    except OSError:
        return
    if mode & 0o077:
        raise ConfigError(name, f"a file that only its owner may read; chmod 600 {key}")
