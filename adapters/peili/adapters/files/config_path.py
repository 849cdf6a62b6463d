"""containerd's setting `config_path`: the directories in which it looks for hosts.toml.

This module needs no optional dependency, so that `peili serve --check` can use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from peili.mirror import ConfigError

K3S_COMMAND = "peili hosts apply --format k3s"
"""The command that edits the file from which k3s and RKE2 generate containerd's configuration."""

_GENERATED = "/agent/etc/containerd/"


def parse_config_path(values: Iterable[str | Path]) -> tuple[Path, ...]:
    """Return the directories as absolute paths, without repetition.

    Args:
        values: Paths; each may be several paths with ``:`` between them, as containerd writes them.

    Raises:
        ConfigError: There is none, one is empty, or k3s generates one.
    """
    names = [name for value in values for name in str(value).split(":")]
    if not names or not all(names) or any("\0" in name for name in names):
        raise ConfigError(
            "config_path", "directories, as in containerd's setting config_path, such as /etc/containerd/certs.d"
        )
    directories = tuple(dict.fromkeys(Path(name).absolute() for name in names))
    if generated := next((each for each in directories if is_generated(each)), None):
        raise ConfigError(
            "config_path", f"a directory that k3s and RKE2 do not generate, not {generated}; run: {K3S_COMMAND}"
        )
    return directories


def is_generated(path: Path) -> bool:
    """Return whether `path` belongs to the containerd configuration that k3s or RKE2 generates each time it starts.

    Changes made there by anyone else are lost at the next start.
    """
    return "\0" not in str(path) and _GENERATED in f"{os.path.realpath(path)}/"
