"""What containerd's configuration means for a mirror: where hosts.toml is looked for, and whether layers are kept.

The keys are the CRI plug-in's, which has other names in each version of the configuration, and the transfer service's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from peili.adapters.containerd.configuration import Configuration, Table
from peili.adapters.containerd.meaning import Version

CRI_1 = "cri"
CRI_2 = "io.containerd.grpc.v1.cri"
IMAGES_3 = "io.containerd.cri.v1.images"
TRANSFER = "io.containerd.transfer.v1.local"
USUAL, DOCKERS = "/etc/containerd/certs.d", "/etc/docker/certs.d"
"""The folders for hosts.toml, by custom."""


@dataclass(frozen=True, slots=True)
class Registries:
    """The part of containerd's configuration that decides about mirrors.

    Attributes:
        plugin, registry_key, discard_key: where the settings stand, or would have to, as a TOML header and key.
        config_path: as set, with ``:`` between folders; empty: hosts.toml is not read.
        by_default: whether nobody has set it.
        discard: whether layers are dropped once they are unpacked.
        inline: which settings there are of the old way, ``mirrors`` and ``configs.tls``.
        transfer: whether pulls of Kubernetes go through the transfer service.
        transfer_path: the transfer service's own `config_path`, for other clients; None: this version has none.
        misplaced: tables for another version's plug-in, which this one does not read.
    """

    plugin: str
    config_path: str
    by_default: bool
    discard: bool
    inline: tuple[str, ...]
    transfer: bool
    transfer_path: str | None
    misplaced: tuple[str, ...]

    @property
    def folders(self) -> tuple[str, ...]:
        """Where hosts.toml is looked for, first one first."""
        return tuple(each for each in self.config_path.split(":") if each)

    @property
    def registry_header(self) -> str:
        """Where `config_path` belongs."""
        return f'[plugins."{self.plugin}".registry]'

    @property
    def discard_header(self) -> str:
        """Where `discard_unpacked_layers` belongs."""
        return f'[plugins."{self.plugin}"]' if self.plugin == IMAGES_3 else f'[plugins."{self.plugin}".containerd]'


def registries(configuration: Configuration, version: Version) -> Registries:
    """What a containerd of that `version` makes of its `configuration`."""
    if version.major >= 2:
        return _of_2(configuration, version)
    plugin = CRI_1 if configuration.version == 1 and CRI_2 not in configuration.plugins else CRI_2
    registry = configuration.table(plugin, "registry")
    return Registries(
        plugin=plugin,
        config_path=_text(registry.get("config_path")),
        by_default="config_path" not in registry,
        discard=configuration.table(plugin, "containerd").get("discard_unpacked_layers") is True,
        inline=_inline(registry),
        transfer=False,
        transfer_path=None,
        misplaced=tuple(name for name in (IMAGES_3,) if name in configuration.plugins),
    )


def _of_2(configuration: Configuration, version: Version) -> Registries:
    """2.x turns what is written for 1.x into its own keys; what is written for itself wins."""
    images = {**configuration.table(CRI_2, "containerd"), **configuration.table(IMAGES_3)}
    registry = {**configuration.table(CRI_2, "registry"), **configuration.table(IMAGES_3, "registry")}
    preset = f"{USUAL}:{DOCKERS}" if (version.major, version.minor) >= (2, 2) else ""
    inline = _inline(registry)
    discard = images.get("discard_unpacked_layers") is True
    return Registries(
        plugin=IMAGES_3 if configuration.version >= 3 or IMAGES_3 in configuration.plugins else CRI_2,
        config_path=_text(registry.get("config_path", preset)),
        by_default="config_path" not in registry,
        discard=discard,
        inline=inline,
        transfer=(version.major, version.minor) >= (2, 1) and not discard and not _local(images, registry),
        transfer_path=_text(configuration.table(TRANSFER).get("config_path")),
        misplaced=(),
    )


def _local(images: Table, registry: Table) -> bool:
    """Whether pulls stay with the CRI plug-in: asked for, or because the transfer service can't do what else is."""
    return (
        images.get("use_local_image_pull") is True
        or images.get("image_pull_with_sync_fs") is True
        or images.get("disable_snapshot_annotations") is False
        or any(registry.get(key) for key in ("mirrors", "configs", "auths"))
    )


def _inline(registry: Table) -> tuple[str, ...]:
    configs = registry.get("configs")
    tls = isinstance(configs, dict) and any("tls" in each for each in cast("Table", configs).values())
    return (*(["mirrors"] if registry.get("mirrors") else []), *(["configs.tls"] if tls else []))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
