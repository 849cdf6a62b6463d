"""The settings of containerd's CRI plug-in that decide whether containerd uses a mirror and keeps layers to share.

The plug-in has another name in each version of the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from peili.adapters.containerd.doctor.configuration import (
    CRI_1,
    CRI_2,
    DEFAULT_CONFIG_PATH,
    IMAGES_3,
    Configuration,
    Table,
    as_table,
)
from peili.adapters.containerd.version import ContainerdVersion


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """The settings in force.

    Attributes:
        registry_plugin: The name of the plug-in under which settings of registries are in force.
        images_plugin: The same for settings of images.
        config_path: The directories of hosts.toml files, with ``:`` between them; empty if containerd reads none.
        is_default: Whether `config_path` is containerd's default.
        discards_layers: Whether containerd drops layers after it unpacked them.
        conflicting: Settings because of which the CRI plug-in does not load together with `config_path`.
        has_mirrors: Whether mirrors are configured in the old way, without hosts.toml.
        uses_transfer_service: Whether pulls of Kubernetes go through the transfer service, which takes `config_path`
            for one directory.
        snapshotters: The snapshotters that the CRI plug-in uses, each with its address if it is a separate program.
        ignored: Tables that containerd ignores: the plug-in's name, the table, the file.
        working_directory: Where a relative directory of `config_path` is.
    """

    registry_plugin: str
    images_plugin: str
    config_path: str
    is_default: bool
    discards_layers: bool
    conflicting: tuple[str, ...]
    has_mirrors: bool
    uses_transfer_service: bool
    snapshotters: Mapping[str, str | None]
    ignored: tuple[tuple[str, Table, Path], ...]
    working_directory: Path = Path("/")

    @property
    def directories(self) -> tuple[str, ...]:
        """The directories of `config_path`, absolute and in containerd's order."""
        return tuple(str(self.working_directory / each) for each in self.config_path.split(":") if each)

    @property
    def is_config_path_misread(self) -> bool:
        """Whether `config_path` has several directories that the transfer service takes for one."""
        return self.uses_transfer_service and ":" in self.config_path

    @property
    def registry_header(self) -> str:
        """The TOML header under which `config_path` belongs."""
        return f"[plugins.{_quoted(self.registry_plugin)}.registry]"

    @property
    def images_header(self) -> str:
        """The TOML header under which settings of images belong."""
        below = "" if self.images_plugin == IMAGES_3 else ".containerd"
        return f"[plugins.{_quoted(self.images_plugin)}{below}]"


def registry_settings(configuration: Configuration, version: ContainerdVersion) -> RegistrySettings:
    """Return the settings that a containerd of this `version` takes from its `configuration`."""
    settings = _settings_2(configuration, version) if version.major >= 2 else _settings_1(configuration)
    return replace(settings, working_directory=configuration.working_directory)


def _settings_1(configuration: Configuration) -> RegistrySettings:
    plugin = CRI_1 if configuration.format == 1 else CRI_2
    registry, containerd = configuration.table(plugin, "registry"), configuration.table(plugin, "containerd")
    has_mirrors, path = bool(registry.get("mirrors")), _string(registry.get("config_path"))
    has_tls = any("tls" in as_table(each) for each in as_table(registry.get("configs")).values())
    return RegistrySettings(
        registry_plugin=plugin,
        images_plugin=plugin,
        config_path=path,
        is_default="config_path" not in registry,
        discards_layers=containerd.get("discard_unpacked_layers") is True,
        conflicting=_conflicting(path, has_mirrors=has_mirrors, has_tls=has_tls),
        has_mirrors=has_mirrors,
        uses_transfer_service=False,
        snapshotters=_snapshotters(configuration, containerd, as_table(containerd.get("runtimes"))),
        ignored=configuration.ignored,
    )


def _settings_2(configuration: Configuration, version: ContainerdVersion) -> RegistrySettings:
    images = configuration.table(IMAGES_3)
    registry = configuration.table(IMAGES_3, "registry")
    has_mirrors = bool(registry.get("mirrors"))
    path, is_default = _config_path_2(registry, version)
    return RegistrySettings(
        registry_plugin=_registry_plugin_2(configuration),
        images_plugin=_images_plugin_2(configuration),
        config_path=path,
        is_default=is_default,
        discards_layers=images.get("discard_unpacked_layers") is True,
        conflicting=_conflicting(path, has_mirrors=has_mirrors, has_tls=False),
        has_mirrors=has_mirrors,
        uses_transfer_service=(version.major, version.minor) >= (2, 1) and not _pulls_locally(images, registry),
        snapshotters=_snapshotters(configuration, images, as_table(images.get("runtime_platforms"))),
        ignored=configuration.ignored,
    )


def _config_path_2(registry: Table, version: ContainerdVersion) -> tuple[str, bool]:
    """Return `config_path`, and whether it is the default. Since 2.3, an empty value is the same as none."""
    number = (version.major, version.minor)
    path = _string(registry.get("config_path"))
    if number >= (2, 3):
        return path or ("" if registry.get("mirrors") else DEFAULT_CONFIG_PATH), not path
    is_default = "config_path" not in registry
    return DEFAULT_CONFIG_PATH if is_default and number == (2, 2) else path, is_default


def _registry_plugin_2(configuration: Configuration) -> str:
    """Return the name under which `config_path` takes effect: migrated settings replace those under the new name."""
    has_new = "registry" in configuration.table(IMAGES_3)
    has_old = "registry" in configuration.table(CRI_2)
    old_name = configuration.migrated_name
    return old_name if old_name and (has_old or not has_new) else IMAGES_3


def _images_plugin_2(configuration: Configuration) -> str:
    """Return the same for settings of images, which are migrated only if there are runtimes."""
    old = configuration.table(CRI_2, "containerd")
    is_migrated = "runtimes" in old and {"discard_unpacked_layers", "snapshotter"} & {*old}
    old_name = configuration.migrated_name
    return old_name if old_name and is_migrated else IMAGES_3


def _pulls_locally(images: Table, registry: Table) -> bool:
    """Return whether the CRI plug-in itself pulls: by choice, or because the transfer service lacks a setting."""
    return (
        images.get("use_local_image_pull") is True
        or images.get("image_pull_with_sync_fs") is True
        or images.get("discard_unpacked_layers") is True
        or images.get("disable_snapshot_annotations") is False
        or images.get("max_concurrent_downloads", 3) != 3
        or any(registry.get(key) for key in ("mirrors", "configs", "auths"))
    )


def _conflicting(config_path: str, *, has_mirrors: bool, has_tls: bool) -> tuple[str, ...]:
    """Return the settings that conflict with `config_path`."""
    if not config_path:
        return ()
    return (*(["mirrors"] if has_mirrors else []), *(["configs.tls"] if has_tls else []))


def _snapshotters(configuration: Configuration, images: Table, runtimes: Table) -> dict[str, str | None]:
    """Return the default snapshotter first, then those of single runtimes."""
    names = [_string(images.get("snapshotter")) or "overlayfs"]
    names += [_string(as_table(each).get("snapshotter")) for each in runtimes.values()]
    return {name: configuration.proxies.get(name) for name in names if name}


def _quoted(plugin: str) -> str:
    return plugin if plugin == CRI_1 else f'"{plugin}"'


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""
