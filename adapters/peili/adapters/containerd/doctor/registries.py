"""What containerd's configuration means for a mirror: where hosts.toml is looked for, and whether layers are kept.

The keys are the CRI plug-in's, which has other names in each version of the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peili.adapters.containerd.doctor.configuration import Configuration, as_table
from peili.adapters.containerd.doctor.generations import BOTH, CRI_1, CRI_2, IMAGES_3, Table
from peili.adapters.containerd.version import ContainerdVersion


@dataclass(frozen=True, slots=True)
class Registries:
    """The part of containerd's configuration that decides about mirrors.

    Attributes:
        plugin, images: under which name the settings of registries, and of images, stand or would have to.
        config_path: as it is in force, with ``:`` between folders; empty: hosts.toml is not read.
        by_default: whether nobody has set it.
        discard: whether layers are dropped once they are unpacked.
        inline: which settings there are that keep the CRI plug-in from loading beside `config_path`.
        mirrors: whether there are mirrors of the old way.
        transfer: whether pulls of Kubernetes go through the transfer service, which takes `config_path` for one folder.
        snapshotters: those that the CRI plug-in uses, each with the address where it is a program of its own.
        misplaced: tables that this containerd does not read: name, table, file.
    """

    plugin: str
    images: str
    config_path: str
    by_default: bool
    discard: bool
    inline: tuple[str, ...]
    mirrors: bool
    transfer: bool
    snapshotters: Mapping[str, str | None]
    misplaced: tuple[tuple[str, Table, Path], ...]

    @property
    def folders(self) -> tuple[str, ...]:
        """Where hosts.toml is looked for, first one first."""
        return tuple(each for each in self.config_path.split(":") if each)

    @property
    def none_is_read(self) -> bool:
        """Whether `config_path` is more than one folder where it has to be one."""
        return self.transfer and ":" in self.config_path

    @property
    def registry_header(self) -> str:
        """Where `config_path` belongs, as a TOML header."""
        return f"[plugins.{_quoted(self.plugin)}.registry]"

    @property
    def images_header(self) -> str:
        """Where the settings belong that are about images."""
        below = "" if self.images == IMAGES_3 else ".containerd"
        return f"[plugins.{_quoted(self.images)}{below}]"


def registries(configuration: Configuration, version: ContainerdVersion) -> Registries:
    """What a containerd of that `version` makes of its `configuration`."""
    if version.major >= 2:
        return _of_2(configuration, version)
    plugin = CRI_1 if configuration.version == 1 else CRI_2
    registry, containerd = configuration.table(plugin, "registry"), configuration.table(plugin, "containerd")
    mirrors, path = bool(registry.get("mirrors")), _text(registry.get("config_path"))
    tls = any("tls" in as_table(each) for each in as_table(registry.get("configs")).values())
    return Registries(
        plugin=plugin,
        images=plugin,
        config_path=path,
        by_default="config_path" not in registry,
        discard=containerd.get("discard_unpacked_layers") is True,
        inline=_inline(path, mirrors=mirrors, tls=tls),
        mirrors=mirrors,
        transfer=False,
        snapshotters=_snapshotters(configuration, containerd, as_table(containerd.get("runtimes"))),
        misplaced=configuration.unread,
    )


def _of_2(configuration: Configuration, version: ContainerdVersion) -> Registries:
    images = configuration.table(IMAGES_3)
    registry = configuration.table(IMAGES_3, "registry")
    mirrors = bool(registry.get("mirrors"))
    path, by_default = _path_of_2(registry, version)
    return Registries(
        plugin=_plugin_of_2(configuration),
        images=_images_plugin_of_2(configuration),
        config_path=path,
        by_default=by_default,
        discard=images.get("discard_unpacked_layers") is True,
        inline=_inline(path, mirrors=mirrors, tls=False),
        mirrors=mirrors,
        transfer=(version.major, version.minor) >= (2, 1) and not _local(images, registry),
        snapshotters=_snapshotters(configuration, images, as_table(images.get("runtime_platforms"))),
        misplaced=configuration.unread,
    )


def _path_of_2(registry: Table, version: ContainerdVersion) -> tuple[str, bool]:
    """`config_path` as it is in force, and whether by default. From 2.3 on an empty one is as if it were not set."""
    number = (version.major, version.minor)
    path = _text(registry.get("config_path"))
    if number >= (2, 3):
        return path or ("" if registry.get("mirrors") else BOTH), not path
    by_default = "config_path" not in registry
    return BOTH if by_default and number == (2, 2) else path, by_default


def _plugin_of_2(configuration: Configuration) -> str:
    """Under which name `config_path` has to be written so that it is in force: what is moved replaces what is there."""
    there = "registry" in configuration.table(IMAGES_3)
    moved = "registry" in configuration.table(CRI_2)
    return configuration.moved if configuration.moved and (moved or not there) else IMAGES_3


def _images_plugin_of_2(configuration: Configuration) -> str:
    """The same for settings of images, which are moved only where there are runtimes."""
    old = configuration.table(CRI_2, "containerd")
    moved = "runtimes" in old and {"discard_unpacked_layers", "snapshotter"} & {*old}
    return configuration.moved if configuration.moved and moved else IMAGES_3


def _local(images: Table, registry: Table) -> bool:
    """Whether pulls stay with the CRI plug-in: asked for, or because the transfer service can't do what else is."""
    return (
        images.get("use_local_image_pull") is True
        or images.get("image_pull_with_sync_fs") is True
        or images.get("discard_unpacked_layers") is True
        or images.get("disable_snapshot_annotations") is False
        or images.get("max_concurrent_downloads", 3) != 3
        or any(registry.get(key) for key in ("mirrors", "configs", "auths"))
    )


def _inline(config_path: str, *, mirrors: bool, tls: bool) -> tuple[str, ...]:
    """What must not stand beside `config_path`."""
    if not config_path:
        return ()
    return (*(["mirrors"] if mirrors else []), *(["configs.tls"] if tls else []))


def _snapshotters(configuration: Configuration, images: Table, runtimes: Table) -> dict[str, str | None]:
    """The default one, and those of single runtimes."""
    names = [_text(images.get("snapshotter")) or "overlayfs"]
    names += [_text(as_table(each).get("snapshotter")) for each in runtimes.values()]
    return {name: configuration.proxies.get(name) for name in names if name}


def _quoted(plugin: str) -> str:
    return plugin if plugin == CRI_1 else f'"{plugin}"'


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
