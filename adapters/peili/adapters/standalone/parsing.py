"""Checks the sections of the configuration, and fills in the defaults.

settings.py collects the values from the file, the environment and the command line.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from peili.adapters.files.config_path import parse_config_path
from peili.adapters.standalone.config import (
    FORMATS,
    LEVELS,
    Config,
    HostsOptions,
    LogOptions,
    MirrorOptions,
    PluginSection,
)
from peili.adapters.standalone.door_options import LocalOptions, PeerOptions, TLSOptions
from peili.adapters.standalone.listen_addresses import check_ports, read_addresses
from peili.adapters.standalone.settings import OUTSIDE, Sections
from peili.adapters.standalone.upstreams import parse_upstream
from peili.mirror import (
    ApiRoot,
    ConfigError,
    Limits,
    Options,
    Selection,
    base_url,
    check_registries,
    clients_in,
    is_identity,
)

_OUTAGES = ("deny", "remembered")
_DEFAULT_PLUGINS = {"store": "containerd", "router": "mdns", "resolver": "defer"}
SECTIONS = (
    *("local", "ops", "peer", "store", "router", "resolver", "mirror", "upstream", "limits", "hosts", "log"),
    "watchdog",
)
_STRINGS = (
    *("kind", "advertise", "shared_key_file", "default_registry", "identity", "format", "level", "authorize_outage"),
)
"""The keys, in any section, that are always a string: a value without quotes that looks like a number is one, too."""


def parse_config(sections: Sections, file: Path | None = None) -> Config:
    """Check `sections` and fill in the defaults. The plug-ins check their options themselves, in `PluginSection.build`.

    Args:
        sections: The values.
        file: The file that they were read from; None if there is none.

    Raises:
        ConfigError: for the first mistake; `find_mistakes` returns all.
    """
    _check_names(sections)
    config = Config(
        local=_parse_local(sections),
        ops=_parse_ops(sections),
        peer=_parse_peer(sections),
        store=parse_plugin("store", sections),
        router=parse_plugin("router", sections),
        resolver=parse_plugin("resolver", sections),
        mirror=_parse_mirror(sections),
        limits=_parse_limits(sections),
        hosts=_parse_hosts(sections),
        log=_parse_log(sections),
        watchdog=_parse_watchdog(sections),
        upstreams=_parse_upstreams(sections),
        file=file,
    )
    _check_ports(sections)
    return config


def _field_names(options: type[Any]) -> tuple[str, ...]:
    return tuple(each.name for each in fields(options))


def _check_names(sections: Sections) -> None:
    for name, settings in sections.items():
        if (outside := settings.get(OUTSIDE)) is not None:
            raise ConfigError(name, _outside_hint(name, outside.value), source=outside.source)
    try:
        Options(sections, *SECTIONS)
    except ConfigError as error:
        source = next((setting.source for setting in sections[error.key].values()), None)
        raise ConfigError(error.key, error.expected, source=source) from error


def _outside_hint(name: str, value: object) -> str:
    """Return what would be right instead of a key above all sections."""
    if name == "upstream":
        return 'a section for each registry, as in [upstream."registry.example"]'
    if name in SECTIONS:
        key = known_keys()[name][0]
        return f"a section; did you mean {key} = {json.dumps(value, default=str)} below [{name}]?"
    homes: dict[str, list[str]] = {}
    for section, keys in known_keys().items():
        for key in keys:
            homes.setdefault(key, []).append(section)
    near = difflib.get_close_matches(name, homes, 1)
    hint = f"; did you mean {near[0]} below [{'] or ['.join(homes[near[0]])}]?" if near else ""
    return f"belongs in a section: write [SECTION] above it{hint}"


@contextmanager
def _section(name: str, sections: Sections, *known: str, listed_in: str = "") -> Generator[Options]:
    """Yield the options of one section. For `known` and `listed_in`, see `Options`.

    A ConfigError that is raised in the block gets the name of the section and the source of the value: a file, a
    variable or an option of the command line.
    """
    settings = sections.get(name, {})
    for key in settings:
        homes = [f"[{section}]" for section, keys in known_keys().items() if key in keys]
        if key not in known and homes:
            raise ConfigError(f"{name}.{key}", f"belongs in {' or '.join(homes)}", source=settings[key].source)
    # PEILI_MIRROR__IDENTITY=42 has no quotes, and is a string.
    values = {
        key: each.text if key in _STRINGS and each.text is not None and not isinstance(each.value, str) else each.value
        for key, each in settings.items()
    }
    try:
        yield Options(values, *known, listed_in=listed_in)
    except ConfigError as error:
        setting = settings.get(re.split(r"[.\[]", error.key)[0])  # the key may be in a table, such as tls.ca
        raise error.within(name, source=None if setting is None else setting.source) from error


def known_keys() -> dict[str, tuple[str, ...]]:
    """Return the keys of each section. Those of a plug-in are known to the plug-in, except ``kind``."""
    return {
        **dict.fromkeys(_DEFAULT_PLUGINS, ("kind",)),
        "local": tuple(name for name in _field_names(LocalOptions) if name != "sources"),
        "ops": ("listen",),
        "peer": tuple(name for name in _field_names(PeerOptions) if name != "sources"),
        "mirror": _field_names(MirrorOptions),
        "limits": _field_names(Limits),
        "hosts": _field_names(HostsOptions),
        "log": _field_names(LogOptions),
        "watchdog": ("timeout",),
    }


def _parse_local(sections: Sections) -> LocalOptions:
    with _section("local", sections, *known_keys()["local"]) as section:
        options = LocalOptions(
            listen=read_addresses(section, "listen", "127.0.0.1:5050"),
            allow_clients=section.texts("allow_clients", (), empty=True),
            allow_hosts=section.texts("allow_hosts", (), empty=True),
            cert=section.path("cert", None),
            key=section.path("key", None),
            client_ca=section.path("client_ca", None),
            sources={key: setting.source for key, setting in sections.get("local", {}).items()},
        )
        try:
            clients_in(options.allow_clients)
        except ValueError as error:
            raise ConfigError("allow_clients", f"networks such as 10.0.0.0/24: {error}") from error
        return options


def _parse_ops(sections: Sections) -> tuple[str, ...]:
    with _section("ops", sections, "listen") as section:
        return read_addresses(section, "listen", [], empty=True)


def _parse_log(sections: Sections) -> LogOptions:
    with _section("log", sections, *_field_names(LogOptions)) as section:
        return LogOptions(section.choice("format", FORMATS, "text"), section.choice("level", LEVELS, "info"))


def _parse_watchdog(sections: Sections) -> float:
    with _section("watchdog", sections, "timeout") as section:
        return section.number("timeout", 30.0, expected="a number of seconds, 0 for off")


def _parse_limits(sections: Sections) -> Limits:
    with _section("limits", sections, *_field_names(Limits), listed_in="docs/configuration.md"):
        return Limits(**{key: setting.value for key, setting in sections.get("limits", {}).items()})


def _parse_upstreams(sections: Sections) -> dict[str, ApiRoot]:
    found: dict[str, ApiRoot] = {}
    for registry, setting in sections.get("upstream", {}).items():
        try:
            found[registry] = parse_upstream(registry, setting.value)
        except ConfigError as error:
            raise error.within("upstream", source=setting.source) from error
    return found


def _check_ports(sections: Sections) -> None:
    doors = {"local": _parse_local(sections).listen, "peer": _parse_peer(sections).listen, "ops": _parse_ops(sections)}
    settings = {door: sections.get(door, {}).get("listen") for door in doors}
    check_ports(doors, {door: setting.source for door, setting in settings.items() if setting is not None})


def _parse_peer(sections: Sections) -> PeerOptions:
    with _section("peer", sections, *known_keys()["peer"]) as section:
        options = PeerOptions(
            listen=read_addresses(section, "listen", "[::]:5051", empty=True),
            advertise=section.text("advertise", None),
            insecure=section.boolean("insecure", False),
            shared_key_file=section.path("shared_key_file", None),
            tls=_parse_tls(section),
            sources={key: setting.source for key, setting in sections.get("peer", {}).items()},
        )
        _check_peer(options, section)
    return options


def _parse_tls(section: Options) -> TLSOptions | None:
    if "tls" not in section:
        return None
    expected = "a table such as { ca = FILE, cert = FILE, key = FILE }"
    table = section.table("tls", section.value("tls", dict, expected), *_field_names(TLSOptions), expected=expected)
    files = (table.path("ca"), table.path("cert"), table.path("key"))
    return TLSOptions(*files, table.texts("names", ()), table.path("crl", None))


def _check_peer(options: PeerOptions, section: Options) -> None:
    ways = [key for key in ("insecure", "shared_key_file", "tls") if getattr(options, key)]
    if len(ways) > 1:
        raise ConfigError(ways[-1], f"set only one of {' and '.join(ways)}")
    if options.advertise is None:
        return
    expected = "https://HOST:PORT or https://HOST:PORT/PATH"
    has_tls = not options.insecure and bool(ways)
    try:
        is_right = base_url(options.advertise).startswith("https:") or not has_tls
    except ValueError:
        is_right = False
    if not is_right:
        plain = f"{expected}, because hosts connect to peers with TLS" if has_tls else f"http://HOST:PORT or {expected}"
        raise section.wrong("advertise", plain)


def parse_plugin(name: str, sections: Sections) -> PluginSection:
    """Return the section of a plug-in: ``store``, ``router`` or ``resolver``. Raises ConfigError."""
    settings = sections.get(name, {})
    with _section(name, sections, *settings) as section:
        kind = section.text("kind", _DEFAULT_PLUGINS[name])
    options = {key: setting.value for key, setting in settings.items() if key != "kind"}
    return PluginSection(name, kind, options, {key: setting.source for key, setting in settings.items()})


def _parse_mirror(sections: Sections) -> MirrorOptions:
    with _section("mirror", sections, *_field_names(MirrorOptions)) as section:
        options = MirrorOptions(
            registries=section.texts("registries", (), empty=True),
            exclude=section.texts("exclude", (), empty=True),
            verify=section.boolean("verify", True),
            default_registry=section.text("default_registry", None),
            identity=section.text("identity", None),
            authorize=section.texts("authorize", (), empty=True),
            authorize_ttl=section.number("authorize_ttl", 300.0, expected="a number of seconds above zero"),
            authorize_basic=section.boolean("authorize_basic", True),
            authorize_outage=section.choice("authorize_outage", _OUTAGES, "deny"),
            authorize_grace=section.number("authorize_grace", 86400.0, expected="a number of seconds above zero"),
        )
        if options.identity is not None and not is_identity(options.identity):
            raise section.wrong("identity", "up to 255 of the visible ASCII characters")
        Selection(options.registries, options.exclude)
        _ = options.rights
        if options.default_registry is not None:
            try:
                check_registries((options.default_registry,))
            except ConfigError as error:
                raise ConfigError("default_registry", error.expected) from error
    return options


def _parse_hosts(sections: Sections) -> HostsOptions:
    with _section("hosts", sections, *_field_names(HostsOptions)) as section:
        options = HostsOptions(
            apply=section.boolean("apply", False),
            config_path=section.texts("config_path", (), empty=True),
            registries=section.texts("registries", (), empty=True),
            ca=section.path("ca", None),
            client_cert=section.path("client_cert", None),
            client_key=section.path("client_key", None),
        )
        if options.config_path:
            parse_config_path(options.config_path)
        check_registries(name for name in options.registries if name != "_default")
    return options


CHECKS: tuple[Callable[[Sections], object], ...] = (
    _check_names,
    _parse_local,
    _parse_ops,
    _parse_peer,
    _parse_mirror,
    _parse_limits,
    _parse_hosts,
    _parse_log,
    _parse_watchdog,
    _parse_upstreams,
    _check_ports,
)
"""What `parse_config` does, without the plug-ins."""
