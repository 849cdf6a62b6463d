"""Finds plug-ins by name: built-in ones from a table, a host's own by `register`, strangers' by entry points.

The table repeats what pyproject.toml registers, because a scan of all installed packages costs up to 0.2 s at start;
a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from peili.mirror.errors import ConfigError, PluginNotFound
from peili.mirror.plugin import Plugin
from peili.mirror.resolver import Resolver
from peili.mirror.router import Router
from peili.mirror.store import Store

STORES = "peili.stores"
ROUTERS = "peili.routers"
RESOLVERS = "peili.resolvers"

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
        plugin = self._load(STORES, kind)
        if not issubclass(plugin, Store):
            raise _not_a(Store, kind, plugin)
        return plugin.from_config(options)

    def router(self, kind: str, options: Mapping[str, Any]) -> Router:
        """The router called `kind`, built from its options. Raises PluginNotFound, ConfigError."""
        plugin = self._load(ROUTERS, kind)
        if not issubclass(plugin, Router):
            raise _not_a(Router, kind, plugin)
        return plugin.from_config(options)

    def resolver(self, kind: str, options: Mapping[str, Any]) -> Resolver:
        """The resolver called `kind`, built from its options. Raises PluginNotFound, ConfigError."""
        plugin = self._load(RESOLVERS, kind)
        if not issubclass(plugin, Resolver):
            raise _not_a(Resolver, kind, plugin)
        return plugin.from_plugins(options, self)

    def _load(self, group: str, kind: str) -> type[Any]:
        target = self._targets[group].get(kind)
        if target is None:
            target = next((each.value for each in entry_points(group=group, name=kind)), None)
        if target is None:
            raise PluginNotFound(group, kind, self.names(group))
        if isinstance(target, type):
            return target
        try:
            loaded: object = EntryPoint(kind, target, group).load()
        except (ImportError, AttributeError) as error:
            raise ConfigError("kind", f"{kind!r} leads to {target}, which can't be loaded: {error}") from error
        if not isinstance(loaded, type):
            raise ConfigError("kind", f"{kind!r} leads to {target}, which is not a class")
        return loaded


def _not_a(base: type[Plugin], kind: str, found: type[Any]) -> ConfigError:
    return ConfigError("kind", f"{kind!r} leads to {_shown(found)}, which is no {base.__name__}")


def _shown(target: str | type[Any]) -> str:
    return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
