"""Selects the registries and repositories that a mirror is for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from peili.mirror.errors import ConfigError
from peili.mirror.oci.references import is_registry
from peili.mirror.support.options import compile_patterns


class Selection:
    """The registries and repositories that a mirror is for. Immutable.

    Args:
        registries: Host names such as ``docker.io``. ``*`` stands for any characters, as in ``*.example.com``. Host
            names are compared in lower case. If there are none, the mirror is for every registry.
        exclude: Regular expressions that are searched in ``registry/repository``, or in ``registry/repository:tag`` if
            the request has a tag. The mirror is not for a match.

    Raises:
        ConfigError: A host name or an expression is malformed.
    """

    def __init__(self, registries: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        self.registries = frozenset(each.lower() for each in registries)
        self.exclude = compile_patterns("exclude", exclude)
        for registry in self.registries:
            if not is_registry(registry.replace("*", "1")):
                raise ConfigError("registries", f"host names such as docker.io or *.example.com, not {registry!r}")
        self._wildcards = [each.split("*") for each in self.registries if "*" in each]

    @property
    def is_everything(self) -> bool:
        """Whether the mirror is for every image."""
        return not self.registries and not self.exclude

    def has(self, registry: str) -> bool:
        """Return whether the mirror is for `registry`."""
        name = registry.lower()
        return not self.registries or name in self.registries or any(_fits(name, each) for each in self._wildcards)

    def names(self, registry: str) -> bool:
        """Return whether `registry` is one of those for which the mirror is, without a wildcard."""
        return registry.lower() in self.registries

    def allows(self, registry: str | None, repository: str, tag: str | None = None) -> bool:
        """Return whether the mirror is for a repository or a tag.

        Args:
            registry: The registry. If it is None (unknown), only a mirror without any selection is for it.
            repository: The repository.
            tag: The tag, if the request has one.
        """
        if registry is None:
            return not self.registries and not self.exclude
        if not self.has(registry):
            return False
        name = f"{registry.lower()}/{repository}" + (f":{tag}" if tag is not None else "")
        return not any(pattern.search(name) for pattern in self.exclude)


def check_registries(names: Iterable[str]) -> None:
    """Check that each of `names` is the host name of one registry.

    Raises:
        ConfigError: A name is not.
    """
    for name in names:
        if not is_registry(name):
            raise ConfigError("registries", f"host names such as docker.io, not {name!r}")


def _fits(name: str, parts: Sequence[str]) -> bool:
    """Return whether `name` matches a pattern, whose `parts` have wildcards between them."""
    first, *middle, last = parts
    if not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return at <= end
