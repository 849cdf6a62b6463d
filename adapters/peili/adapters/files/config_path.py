"""containerd's setting `config_path`, as peili is told it: the folders in which hosts.toml is looked for.

Needs no extra, so that `peili serve --check` can read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from peili.adapters.files.generated import COMMAND, is_generated
from peili.mirror import ConfigError


def folders(config_path: Iterable[str | Path]) -> tuple[Path, ...]:
    """The folders, each once; one of `config_path` may be several with ``:`` between them. Raises ConfigError, also for
    one that k3s generates.
    """
    names = [name for each in config_path for name in str(each).split(":")]
    if not names or not all(names):
        raise ConfigError("config_path", "the folders of containerd's setting of that name, as /etc/containerd/certs.d")
    found = tuple(dict.fromkeys(Path(name).absolute() for name in names))
    if made := next((each for each in found if is_generated(each)), None):
        raise ConfigError("config_path", f"no folder that k3s or RKE2 writes anew, as {made}; use {COMMAND}")
    return found
