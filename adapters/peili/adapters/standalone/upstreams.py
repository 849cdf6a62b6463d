"""The section ``[upstream]``, and how the command finds the API of a registry: as this host's containerd does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from peili.mirror import ApiRoot, ConfigError, Options, RootFinder, default_roots, is_registry

KEYS = ("url", "ca")
_EXAMPLE = '[upstream."registry.example"]'


def parse_upstream(registry: str, table: object) -> ApiRoot:
    """Return the root of a registry's API from its table in ``[upstream]``.

    Args:
        registry: The host name of the registry, with or without a port.
        table: The value.

    Raises:
        ConfigError: The name or the table is wrong.
    """
    if not is_registry(registry):
        raise ConfigError(f'"{registry}"', f"the host name of a registry, as in {_EXAMPLE}")
    if not isinstance(table, dict):
        raise ConfigError(f'"{registry}"', f"a table, as in {_EXAMPLE}")
    options = Options(cast("dict[str, Any]", table), *KEYS, within=f'"{registry}"')
    expected = "an http or https URL, such as https://registry.example"
    url = options.text("url", default_roots(registry)[0].url, expected=expected)
    ca: Path | None = options.path("ca", None, absolute=True)
    try:
        return ApiRoot.of(url, ca=() if ca is None else (ca,))
    except ValueError as error:
        raise options.wrong("url", expected) from error


def root_finder(upstreams: Mapping[str, ApiRoot], containerd: Callable[[str], Sequence[ApiRoot]]) -> RootFinder:
    """Return what finds the API of a registry: the section ``[upstream]`` first, then containerd's configuration.

    Args:
        upstreams: The roots in the section ``[upstream]``, by registry.
        containerd: Returns the roots that containerd uses.
    """
    configured = {registry.lower(): root for registry, root in upstreams.items()}

    def find(registry: str) -> Sequence[ApiRoot]:
        root = configured.get(registry.lower())
        return containerd(registry) if root is None else (root,)

    return find
