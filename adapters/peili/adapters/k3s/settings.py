"""The one setting of k3s and RKE2 themselves that decides whether adding a mirror is safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peili.adapters.files.yaml_text import NotYaml, is_table, one_plain

_KEY = "disable-default-registry-endpoint"


def no_default_endpoint(directory: Path) -> Path | None:
    """The configuration file in `directory` that turns it on, if one does.

    Then a registry that has an entry in registries.yaml is asked only at the endpoints that it names. The same given on
    the command line is not seen.
    """
    for file in (directory / "config.yaml", *sorted((directory / "config.yaml.d").glob("*.yaml"))):
        try:
            said: Any = one_plain(file.read_text(encoding="utf-8"))
        except (NotYaml, OSError, UnicodeDecodeError):
            continue  # k3s's own trouble; it does not start with it
        if is_table(said) and said.get(_KEY) in (True, "true"):
            return file
    return None
