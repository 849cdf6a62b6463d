"""Which registries and repositories a mirror is for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from peili.mirror.errors import ConfigError
from peili.mirror.references import is_registry


class Selection:
    """`registries` are host names, as in ``docker.io``; none means every registry. `exclude` are regular expressions,
    searched in ``registry/repository`` or, where a tag is asked for, ``registry/repository:tag``.

    Immutable. Raises ConfigError.
    """

    def __init__(self, registries: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        self.registries = frozenset(registries)
        self.exclude = tuple(_pattern(text) for text in exclude)
        for registry in self.registries:
            if not is_registry(registry):
                raise ConfigError("registries", f"host names such as docker.io, not {registry!r}")

    def allows(self, registry: str | None, repository: str, tag: str | None = None) -> bool:
        """Whether this mirror is for it. Where the registry is not known, only a mirror for everything is."""
        if registry is None:
            return not self.registries and not self.exclude
        if self.registries and registry not in self.registries:
            return False
        name = f"{registry}/{repository}" + (f":{tag}" if tag is not None else "")
        return not any(pattern.search(name) for pattern in self.exclude)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError("exclude", f"regular expressions; {text!r} is none: {error}") from error
