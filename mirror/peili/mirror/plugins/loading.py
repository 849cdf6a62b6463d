"""Finds plug-ins by name: in a table of the built-in and the registered ones, then by entry points.

The table repeats the entry points of pyproject.toml, because a scan of all installed packages takes up to 0.2 s. A test
compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from peili.mirror.errors import ConfigError, PluginNotFound
from peili.mirror.plugins.interfaces import Plugin, Router, Store
from peili.mirror.plugins.resolver import Resolver

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
        "dns": "peili.routers.dns:DnsRouter",
        "file": "peili.routers.file:FileRouter",
        "kubernetes": "peili.routers.kubernetes:KubernetesRouter",
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
        "upstream": "peili.mirror.resolvers:UpstreamResolver",
    },
}

T = TypeVar("T", bound=Plugin)


class Plugins:
    """The plug-ins by name. Each host agent may have its own object; nothing is global.

    Not thread-safe while `register` is called.
    """

    def __init__(self) -> None:
        self._targets: dict[str, dict[str, str | type[Plugin]]] = {
            group: dict(names) for group, names in BUILT_IN.items()
        }

    def register(self, group: str, name: str, target: str | type[Plugin]) -> None:
        """Add a plug-in that has no entry point, for example in a frozen app. It replaces a plug-in of the same name.

        Args:
            group: `STORES`, `ROUTERS` or `RESOLVERS`.
            name: Its name, the ``kind`` in a configuration.
            target: The class, or its place as ``module:class``.

        Raises:
            ValueError: There is no such group.
        """
        if group not in self._targets:
            raise ValueError(f"no group {group!r}; there are: {', '.join(self._targets)}")
        self._targets[group][name] = target

    def names(self, group: str) -> dict[str, str]:
        """Return every name in `group` with its class as ``module:class``. Scans the entry points of all packages."""
        found = {each.name: each.value for each in entry_points(group=group)}
        known = {name: _path(target) for name, target in self._targets[group].items()}
        return dict(sorted({**found, **known}.items()))

    def store(self, kind: str, options: Mapping[str, Any]) -> Store:
        """Return the store `kind`, constructed from its options.

        Args:
            kind: The name of the store.
            options: Its section of the configuration, without ``kind``.

        Raises:
            PluginNotFound: There is no store `kind`.
            ConfigError: An option is unknown or wrong.
        """
        found = self._find(STORES, kind)
        plugin: type[Store] = found.load(Store)
        return found.construct(lambda: plugin.from_config(options))

    def router(self, kind: str, options: Mapping[str, Any]) -> Router:
        """Return the router `kind`, constructed from its options.

        Args:
            kind: The name of the router.
            options: Its section of the configuration, without ``kind``.

        Raises:
            PluginNotFound: There is no router `kind`.
            ConfigError: An option is unknown or wrong.
        """
        found = self._find(ROUTERS, kind)
        plugin: type[Router] = found.load(Router)
        return found.construct(lambda: plugin.from_config(options))

    def resolver(self, kind: str, options: Mapping[str, Any]) -> Resolver:
        """Return the resolver `kind`, constructed from its options.

        Args:
            kind: The name of the resolver.
            options: Its section of the configuration, without ``kind``.

        Raises:
            PluginNotFound: There is no resolver `kind`.
            ConfigError: An option is unknown or wrong.
        """
        found = self._find(RESOLVERS, kind)
        plugin: type[Resolver] = found.load(Resolver)
        return found.construct(lambda: plugin.from_plugins(options, self))

    def _find(self, group: str, kind: str) -> _Target:
        target = self._targets[group].get(kind)
        if isinstance(target, str):
            return _Target(kind, EntryPoint(kind, target, group))
        found = target or next(iter(entry_points(group=group, name=kind)), None)
        if found is None:
            raise PluginNotFound(group, kind, self.names(group))
        return _Target(kind, found)


@dataclass(frozen=True, slots=True)
class _Target:
    """The class that the name `kind` stands for, not loaded yet. Its problems become a ConfigError of one line."""

    kind: str
    target: EntryPoint | type[Plugin]

    def load(self, interface: type[Any]) -> type[Any]:
        """Return the class, which is a subclass of `interface`."""
        try:
            loaded: object = self.target.load() if isinstance(self.target, EntryPoint) else self.target
        except Exception as error:  # a third-party module may raise anything while it is imported
            raise self.error(f"which can't be loaded: {_one_line(error)}") from error
        if not isinstance(loaded, type):
            raise self.error("which is not a class")
        if not issubclass(loaded, interface):
            raise self.error(f"which is not a {interface.__name__}")
        return loaded

    def construct(self, constructor: Callable[[], T]) -> T:
        """Return what `constructor` returns. The plug-in's own ConfigErrors are passed on as they are."""
        try:
            return constructor()
        except (ConfigError, PluginNotFound):
            raise
        except Exception as error:  # from third-party code; for example, its class may be abstract
            raise self.error(f"which can't be constructed: {_one_line(error)}") from error

    def error(self, problem: str) -> ConfigError:
        """Return the error for `problem`."""
        dist = self.target.dist if isinstance(self.target, EntryPoint) else None
        owner = f" of the distribution {dist.name}" if dist is not None else ""
        return ConfigError("kind", f"{self.kind!r}{owner} leads to {_path(self.target)}, {problem}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _path(target: str | EntryPoint | type[Any]) -> str:
    if isinstance(target, EntryPoint):
        return target.value
    return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
