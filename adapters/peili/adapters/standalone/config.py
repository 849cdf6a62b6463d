"""The command's configuration, as values: a class for each section. parsing.py makes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from peili.adapters.standalone.door_options import LocalOptions, PeerOptions
from peili.mirror import ApiRoot, ConfigError, Limits, PluginNotFound, PullRights

T = TypeVar("T")
LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True)
class PluginSection:
    """One of the sections ``[store]``, ``[router]`` and ``[resolver]``.

    Attributes:
        name: The section.
        kind: The name of the plug-in.
        options: All other keys; the plug-in checks them.
        sources: Where each key was set.
    """

    name: str
    kind: str
    options: Mapping[str, Any]
    sources: Mapping[str, str] = field(repr=False)

    def build(self, make: Callable[[str, Mapping[str, Any]], T]) -> T:
        """Return what `make`, a method of `Plugins`, builds from kind and options. Raises ConfigError."""
        try:
            return make(self.kind, self.options)
        except ConfigError as error:
            key = re.split(r"[.\[]", error.key)[0]  # the plug-in may name a place in its option, such as peers[2].url
            raise error.within(self.name, source=self.sources.get(key, self.sources.get("kind"))) from error
        except PluginNotFound as error:
            raise ConfigError(f"{self.name}.kind", str(error), source=self.sources.get("kind")) from error


@dataclass(frozen=True, slots=True)
class MirrorOptions:
    """The section ``[mirror]``. Parameters of `Mirror` have the same names. `PullRights` has those of ``authorize``."""

    registries: tuple[str, ...]
    exclude: tuple[str, ...]
    verify: bool
    default_registry: str | None
    identity: str | None
    authorize: tuple[str, ...] = ()
    authorize_ttl: float = 300.0
    authorize_basic: bool = True
    authorize_outage: str = "deny"
    authorize_grace: float = 86400.0

    @property
    def rights(self) -> PullRights:
        """Who may pull. Raises ConfigError."""
        return PullRights(
            self.authorize,
            ttl=self.authorize_ttl,
            basic=self.authorize_basic,
            outage=self.authorize_outage,
            grace=self.authorize_grace,
        )


@dataclass(frozen=True, slots=True)
class HostsOptions:
    """The section ``[hosts]``, about containerd's hosts.toml files.

    Attributes:
        apply: Put peili first in containerd's registries while the mirror runs.
        config_path: containerd's setting of that name; empty for containerd's defaults.
        registries: The registries to change; empty for those of the section ``[mirror]``.
        ca: The authority of the local door's certificate, for containerd.
        client_cert: The certificate that containerd shows to the local door.
        client_key: The private key of that certificate. Nobody but its owner may read it.
    """

    apply: bool
    config_path: tuple[str, ...]
    registries: tuple[str, ...]
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


@dataclass(frozen=True, slots=True)
class LogOptions:
    """The section ``[log]``."""

    format: str
    level: str


@dataclass(frozen=True, slots=True)
class Config:
    """A complete configuration. Everything is checked except the options of the plug-ins.

    Attributes:
        ops: The addresses of probes, metrics, status and the page. Empty for those of the local door.
        watchdog: How many seconds the event loop may be blocked; 0 switches the watchdog off.
        upstreams: Where the API of a registry is, by registry; see `root_finder`.
        file: The file that it was read from; None if there is none.
    """

    local: LocalOptions
    ops: tuple[str, ...]
    peer: PeerOptions
    store: PluginSection
    router: PluginSection
    resolver: PluginSection
    mirror: MirrorOptions
    limits: Limits
    hosts: HostsOptions
    log: LogOptions
    watchdog: float
    upstreams: Mapping[str, ApiRoot] = field(default_factory=dict[str, ApiRoot], hash=False)
    file: Path | None = None
