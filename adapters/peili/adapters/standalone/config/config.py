"""The command's configuration: every key, its type and its default.

How a single value is read and what is said when it is wrong is reading.py's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from peili.adapters.files.config_path import parse_config_path
from peili.adapters.standalone.config.reading import Section, unknown
from peili.adapters.standalone.config.settings import Sections
from peili.mirror import ConfigError, Limits, PluginNotFound, Selection
from peili.mirror.oci.selection import check_registries
from peili.mirror.peer_api.peers import base_url, is_identity

T = TypeVar("T")

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
OPEN_IT = "set peer.insecure = true, and let only the peers reach the port"
"""What is right for a peer door while there are no keys."""
_NOT_YET = ("shared_key_file", "tls")


@dataclass(frozen=True, slots=True)
class PeerDoor:
    """The section ``[peer]``. An empty `listen` means that there is no peer door."""

    listen: tuple[str, ...]
    advertise: str | None
    insecure: bool


@dataclass(frozen=True, slots=True)
class PluginSection:
    """One of ``[store]``, ``[router]`` and ``[resolver]``: all but `kind` is the plug-in's to judge."""

    name: str
    kind: str
    options: Mapping[str, Any]
    sources: Mapping[str, str] = field(repr=False)

    def build(self, make: Callable[[str, Mapping[str, Any]], T]) -> T:
        """What `make`, a method of `Plugins`, builds from it. Raises ConfigError."""
        try:
            return make(self.kind, self.options)
        except ConfigError as error:
            key = re.split(r"[.\[]", error.key)[0]
            raise error.within(self.name, source=self.sources.get(key, self.sources.get("kind"))) from error
        except PluginNotFound as error:
            raise ConfigError(f"{self.name}.kind", str(error), source=self.sources.get("kind")) from error


@dataclass(frozen=True, slots=True)
class MirrorOptions:
    """The section ``[mirror]``; `Mirror` says what each means."""

    registries: tuple[str, ...]
    exclude: tuple[str, ...]
    verify: bool
    default_registry: str | None
    identity: str | None


@dataclass(frozen=True, slots=True)
class HostsOptions:
    """The section ``[hosts]``: containerd's hosts.toml files. `apply`: have peili in front while it runs."""

    apply: bool
    config_path: tuple[str, ...]
    registries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogOptions:
    """The section ``[log]``."""

    format: str
    level: str


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration, valid but for what only its plug-ins can judge. `watchdog` is in seconds, 0: off."""

    local: tuple[str, ...]
    peer: PeerDoor
    store: PluginSection
    router: PluginSection
    resolver: PluginSection
    mirror: MirrorOptions
    limits: Limits
    hosts: HostsOptions
    log: LogOptions
    watchdog: float

    @classmethod
    def load(cls, sections: Sections) -> Config:
        """Validate. Raises ConfigError, of one line."""
        _check_names(sections)
        local, peer, log, watchdog = (Section(name, sections) for name in ("local", "peer", "log", "watchdog"))
        return cls(
            local=local.addresses("listen", "127.0.0.1:5050", least=1),
            peer=_peer(peer),
            store=_plugin("store", "containerd", sections),
            router=_plugin("router", "mdns", sections),
            resolver=_plugin("resolver", "defer", sections),
            mirror=_mirror(Section("mirror", sections)),
            limits=_limits(Section("limits", sections)),
            hosts=_hosts(Section("hosts", sections)),
            log=LogOptions(log.choice("format", FORMATS, "text"), log.choice("level", LEVELS, "info")),
            watchdog=watchdog.seconds("timeout", 30.0),
        )


_KEYS: Mapping[str, tuple[str, ...] | None] = {
    "local": ("listen",),
    "peer": ("listen", "advertise", "insecure"),
    "store": None,  # the plug-in knows
    "router": None,
    "resolver": None,
    "mirror": ("registries", "exclude", "verify", "default_registry", "identity"),
    "limits": tuple(each.name for each in fields(Limits)),
    "hosts": ("apply", "config_path", "registries"),
    "log": ("format", "level"),
    "watchdog": ("timeout",),
}


def _check_names(sections: Sections) -> None:
    for name, settings in sections.items():
        if name not in _KEYS:
            source = next((setting.source for setting in settings.values()), None)
            raise ConfigError(name, unknown("section", name, _KEYS), source=source)
        known = _KEYS[name]
        for key, setting in settings.items():
            if name == "peer" and key in _NOT_YET:
                raise ConfigError(f"peer.{key}", f"not supported yet; {OPEN_IT}", source=setting.source)
            if known is not None and key not in known:
                raise ConfigError(f"{name}.{key}", unknown("key", key, known), source=setting.source)


def _peer(section: Section) -> PeerDoor:
    advertise = section.text("advertise")
    if advertise is not None:
        try:
            base_url(advertise)
        except ValueError as error:
            raise section.wrong("advertise", "http://HOST:PORT or https://HOST:PORT/PATH") from error
    return PeerDoor(
        listen=section.addresses("listen", "[::]:5051", least=0),
        advertise=advertise,
        insecure=section.switch("insecure", default=False),
    )


def _plugin(name: str, default: str, sections: Sections) -> PluginSection:
    section = Section(name, sections)
    options = {key: setting.value for key, setting in section.settings.items() if key != "kind"}
    sources = {key: setting.source for key, setting in section.settings.items()}
    return PluginSection(name, section.text("kind") or default, options, sources)


def _mirror(section: Section) -> MirrorOptions:
    options = MirrorOptions(
        registries=section.texts("registries"),
        exclude=section.texts("exclude"),
        verify=section.switch("verify", default=True),
        default_registry=section.text("default_registry"),
        identity=section.text("identity"),
    )
    if options.identity is not None and not is_identity(options.identity):
        raise section.wrong("identity", "up to 255 of the visible ASCII characters")
    try:
        Selection(options.registries, options.exclude)
        if options.default_registry is not None:
            _check_registry(options.default_registry)
    except ConfigError as error:
        raise error.within("mirror", source=section.settings[error.key].source) from error
    return options


def _check_registry(name: str) -> None:
    try:
        check_registries((name,))
    except ConfigError as error:
        raise ConfigError("default_registry", error.expected) from error


def _hosts(section: Section) -> HostsOptions:
    options = HostsOptions(
        apply=section.switch("apply", default=False),
        config_path=section.texts("config_path"),
        registries=section.texts("registries"),
    )
    try:
        if options.config_path:
            parse_config_path(options.config_path)
        check_registries(name for name in options.registries if name != "_default")
    except ConfigError as error:
        raise error.within("hosts", source=section.settings[error.key].source) from error
    return options


def _limits(section: Section) -> Limits:
    try:
        return Limits(**{key: setting.value for key, setting in section.settings.items()})
    except ConfigError as error:
        raise error.within("limits", source=section.settings[error.key].source) from error
