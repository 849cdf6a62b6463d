"""Which repositories are covered: their images are given only to those who may read them in the registry. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable

from peili.mirror.errors import ConfigError
from peili.mirror.oci.references import is_registry, is_repository

_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
"""Names of one registry, so that no other name of it leads around the check."""
_EXPECTED = "registries such as registry.corp, or repositories such as ghcr.io/acme/*"


class Coverage:
    """The covered repositories. Immutable.

    Args:
        patterns: A registry, which covers all of its repositories, or a registry with a repository. ``*`` stands for
            any characters. Registries are compared in lower case.

    Raises:
        ConfigError: A pattern is malformed.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self.patterns = tuple(patterns)
        parts = [_split(each) for each in self.patterns]
        self._patterns = [_compile(registry, repository) for registry, repository in parts]
        self._hosts = [_compile(registry, "*") for registry, _ in parts]
        self._registries = frozenset(_canonical(registry) for registry, _ in parts if "*" not in registry)

    def __bool__(self) -> bool:
        """Return whether anything is covered."""
        return bool(self._patterns)

    def covers(self, registry: str, repository: str) -> bool:
        """Return whether a repository is covered."""
        name = f"{_canonical(registry)}/{repository}"
        return any(each.fullmatch(name) for each in self._patterns)

    def concerns(self, registry: str) -> bool:
        """Return whether a repository of this registry may be covered."""
        return any(each.fullmatch(f"{_canonical(registry)}/") for each in self._hosts)

    def names(self, registry: str) -> bool:
        """Return whether a pattern names this registry without a wildcard, so that the operator trusts it."""
        return _canonical(registry) in self._registries


def _canonical(registry: str) -> str:
    name = registry.lower().removesuffix(":443")
    return "docker.io" if name in _DOCKER_HUB else name


def _split(pattern: str) -> tuple[str, str]:
    registry, slash, repository = pattern.partition("/")
    is_right = is_registry(registry.replace("*", "1")) and (not slash or is_repository(repository.replace("*", "a")))
    if not is_right:
        raise ConfigError("authorize", f"{_EXPECTED}; not {pattern[:80]!r}")
    return registry, repository or "*"


def _compile(registry: str, repository: str) -> re.Pattern[str]:
    host, path = (re.escape(each).replace(r"\*", ".*") for each in (_canonical(registry), repository))
    return re.compile(f"{host.replace('.*', '[^/]*')}/{path}", re.DOTALL)
