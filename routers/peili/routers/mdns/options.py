"""The options of the mdns router."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, TypeGuard

from peili.mirror import ConfigError
from peili.routers.mdns.service import fits_label

_OPTIONS = ("interfaces", "ip_version", "labels")
_VERSIONS: Mapping[str, tuple[int, ...]] = {"all": (4, 6), "v4": (4,), "v6": (6,)}
_INTERFACE = re.compile(r"[^\s/]{1,15}")  # what Linux accepts as a name
_LABEL = re.compile(r"[A-Za-z0-9._/-]+")


@dataclass(frozen=True, slots=True)
class Options:
    """The options, checked."""

    interfaces: tuple[str, ...] = ()
    versions: tuple[int, ...] = (4, 6)
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


def read_options(config: Mapping[str, Any]) -> Options:
    """The options that `config` says. Raises ConfigError."""
    for key in config:
        if key not in _OPTIONS:
            raise ConfigError(key, f"unknown option; there are: {', '.join(_OPTIONS)}")
    return Options(
        _interfaces(config["interfaces"]) if "interfaces" in config else (),
        _versions(config.get("ip_version", "all")),
        _labels(config.get("labels", {})),
    )


def _interfaces(value: Any) -> tuple[str, ...]:
    if not _is_list(value) or not value:
        raise ConfigError("interfaces", f'a list of names or addresses of interfaces, as in ["eth0"], not {value!r}')
    return tuple(_interface(f"interfaces[{place}]", each) for place, each in enumerate(value))


def _interface(key: str, value: Any) -> str:
    if isinstance(value, str):
        try:
            return str(ip_address(value))
        except ValueError:
            if _INTERFACE.fullmatch(value):
                return value
    raise ConfigError(key, f"the name or the address of an interface, as eth0 or 10.0.0.2, not {value!r}")


def _versions(value: Any) -> tuple[int, ...]:
    versions = _VERSIONS.get(value) if isinstance(value, str) else None
    if versions is None:
        raise ConfigError("ip_version", f"one of {', '.join(_VERSIONS)}, not {value!r}")
    return versions


def _labels(value: Any) -> dict[str, str]:
    if not _is_table(value):
        raise ConfigError("labels", f'a table of texts, as in {{zone = "a"}}, not {value!r}')
    for name, text in value.items():
        if not _LABEL.fullmatch(name):
            raise ConfigError("labels", f"names of letters, digits and . _ / -, not {name!r}")
        if not isinstance(text, str) or not fits_label(name, text):
            raise ConfigError(f"labels.{name}", f"a text of up to 200 characters or so, not {text!r}")
    return dict(value)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_table(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)
