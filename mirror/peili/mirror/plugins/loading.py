"""Finds plug-ins by name: built-in ones from a table, a host's own by `register`, strangers' by entry points.

The table repeats what pyproject.toml registers, because a scan of all installed packages costs up to 0.2 s at start;
a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from peili.mirror.errors import ConfigError, PluginNotFound
from peili.mirror.plugins.interfaces import Plugin, Resolver, Router, Store

STORES = "peili.stores"
"""The entry-point group of stores."""
ROUTERS = "peili.routers"
"""The entry-point group of routers."""
RESOLVERS = "peili.resolvers"
"""The entry-point group of resolvers."""

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    STORES: {
        "containerd": "peili.stores.containerd:ContainerdStore",
        "memory": "peili.stores.memory:MemoryStore",
        "oci-layout": "peili.stores.oci_layout:OciLayoutStore",
    },
    ROUTERS: {
        "mdns": "peili.routers.mdns:MdnsRouter",
        "memory": "peili.routers.memory:MemoryRouter",
        "push": "peili.mirror:PushRouter",
        "static": "peili.routers.static:StaticRouter",
        "talos": "peili.routers.talos:TalosRouter",
    },
    RESOLVERS: {
        "chain": "peili.mirror.resolvers:ChainResolver",
        "defer": "peili.mirror.resolvers:DeferResolver",
        "local": "peili.mirror.resolvers:LocalResolver",
        "peers": "peili.mirror.resolvers:PeersResolver",
    },
}

T = TypeVar("T", bound=Plugin)


class Plugins:
    """The plug-ins that can be had by name. Each mirror's host may have its own; nothing is global.

    Not for use from several threads while `register` is called.
    """

    def __init__(self) -> None:
        self._targets: dict[str, dict[str, str | type[Plugin]]] = {
            group: dict(names) for group, names in BUILT_IN.items()
        }

    def register(self, group: str, name: str, target: str | type[Plugin]) -> None:
        """Make a plug-in known without an entry point, as frozen apps need. `target` is a class or ``module:class``.

        A name that is taken is replaced. Raises ValueError for a group that does not exist.
        """
        if group not in self._targets:
            raise ValueError(f"no group {group!r}; there are: {', '.join(self._targets)}")
        self._targets[group][name] = target

    def names(self, group: str) -> dict[str, str]:
        """Every name in `group`, with where it leads. Scans the entry points of all installed packages."""
        found = {each.name: each.value for each in entry_points(group=group)}
        known = {name: _shown(target) for name, target in self._targets[group].items()}
        return dict(sorted({**found, **known}.items()))

    def store(self, kind: str, options: Mapping[str, Any]) -> Store:
        """The store called `kind`, built from its options. Raises PluginNotFound, ConfigError."""
        found = self._find(STORES, kind)
        plugin = found.load()
        if not issubclass(plugin, Store):
            raise found.wrong("which is no Store")
        return found.build(lambda: plugin.from_config(options))

    def router(self, kind: str, options: Mapping[str, Any]) -> Router:
        """The router called `kind`, built from its options. Raises PluginNotFound, ConfigError."""
        found = self._find(ROUTERS, kind)
        plugin = found.load()
        if not issubclass(plugin, Router):
            raise found.wrong("which is no Router")
        return found.build(lambda: plugin.from_config(options))

    def resolver(self, kind: str, options: Mapping[str, Any]) -> Resolver:
        """The resolver called `kind`, built from its options. Raises PluginNotFound, ConfigError."""
        found = self._find(RESOLVERS, kind)
        plugin = found.load()
        if not issubclass(plugin, Resolver):
            raise found.wrong("which is no Resolver")
        return found.build(lambda: plugin.from_plugins(options, self))

    def _find(self, group: str, kind: str) -> _Found:
        target = self._targets[group].get(kind)
        if isinstance(target, str):
            return _Found(kind, EntryPoint(kind, target, group))
        found = target or next(iter(entry_points(group=group, name=kind)), None)
        if found is None:
            raise PluginNotFound(group, kind, self.names(group))
        return _Found(kind, found)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a name leads to. Whatever is wrong with it becomes a ConfigError of one line that says whose it is."""

    kind: str
    target: EntryPoint | type[Plugin]

    def load(self) -> type[Any]:
        """The class, of whatever kind."""
        try:
            loaded: object = self.target.load() if isinstance(self.target, EntryPoint) else self.target
        except Exception as error:  # a stranger's module may raise anything while it is imported
            raise self.wrong(f"which can't be loaded: {_one_line(error)}") from error
        if not isinstance(loaded, type):
            raise self.wrong("which is not a class")
        return loaded

    def build(self, make: Callable[[], T]) -> T:
        """What `make` makes of the options. The plug-in's own ConfigErrors are passed on as they are."""
        try:
            return make()
        except (ConfigError, PluginNotFound):
            raise
        except Exception as error:  # a stranger's, that does not say which option it was, or is abstract
            raise self.wrong(f"which can't be built: {_one_line(error)}") from error

    def wrong(self, how: str) -> ConfigError:
        """The line."""
        dist = self.target.dist if isinstance(self.target, EntryPoint) else None
        owner = f" of the distribution {dist.name}" if dist is not None else ""
        return ConfigError("kind", f"{self.kind!r}{owner} leads to {_shown(self.target)}, {how}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _shown(target: str | EntryPoint | type[Any]) -> str:
    if isinstance(target, EntryPoint):
        return target.value
    return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
