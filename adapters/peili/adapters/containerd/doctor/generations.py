"""How each generation of containerd puts the files of its configuration together, and what 2.x makes of tables that
were written for an earlier one. By what 1.6 to 2.4 do; tests compare each rule with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from peili.adapters.containerd.version import ContainerdVersion

Table = Mapping[str, Any]

CRI_1 = "cri"
CRI_2 = "io.containerd.grpc.v1.cri"
IMAGES_3 = "io.containerd.cri.v1.images"
RUNTIME_3 = "io.containerd.cri.v1.runtime"
"""The CRI plug-in's names in files of version 1, of version 2, and of version 3 on, where it is in parts."""

USUAL, DOCKERS = "/etc/containerd/certs.d", "/etc/docker/certs.d"
"""The folders for hosts.toml, by custom."""
BOTH = f"{USUAL}:{DOCKERS}"

_MIGRATED = ("registry", "max_concurrent_downloads", "image_pull_with_sync_fs")
_MIGRATED_WITH_RUNTIMES = ("snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers")


@dataclass(frozen=True, slots=True)
class Generation:
    """The rules of one generation.

    Attributes:
        newest: the newest version of a file with which it starts; None: it does not look.
        deep: whether tables of a later file are merged into those of an earlier one; else they replace a plug-in's.
        each: whether each file is brought up to date by its own version, before it is merged; else all together are,
            by the version of the last one that has any.
        from_parent: whether a relative pattern in `imports` is looked for beside the file; else where it was started.
        fills: whether bringing up to date turns an empty `config_path` into the default.
    """

    newest: int | None
    deep: bool
    each: bool
    from_parent: bool
    fills: bool = False

    @classmethod
    def of(cls, version: ContainerdVersion) -> Generation:
        """That of a containerd of this `version`."""
        number = (version.major, version.minor)
        if number >= (2, 3):
            return cls(newest=4, deep=True, each=True, from_parent=True)
        if number >= (2, 0):
            return cls(newest=3, deep=True, each=False, from_parent=True, fills=number == (2, 2))
        known = number >= (1, 7)
        return cls(newest=2 if known else None, deep=False, each=False, from_parent=known)


def renamed(name: str) -> str:
    """What 2.x calls a plug-in that a file of version 1 calls `name`; of those that matter here."""
    return CRI_2 if name == CRI_1 else name


def up_to_date(plugins: Table, *, fills: bool = False) -> dict[str, Table]:
    """`plugins` with what stands under the CRI plug-in's name of version 2 put where 2.x looks for it.

    What is moved replaces what is there. Some settings are moved only where there is a table of runtimes beside them.
    """
    old = _table(plugins.get(CRI_2))
    if not old:
        return dict(plugins)
    images = {**_table(plugins.get(IMAGES_3)), **{key: old[key] for key in _MIGRATED if key in old}}
    if fills and _table(images.get("registry")).get("config_path") == "":
        images["registry"] = {**_table(images["registry"]), "config_path": BOTH}
    containerd = _table(old.get("containerd"))
    if "runtimes" in containerd:
        images.update({key: containerd[key] for key in _MIGRATED_WITH_RUNTIMES if key in containerd})
    return {**plugins, IMAGES_3: images}


def _table(value: object) -> Table:
    return cast("Table", value) if isinstance(value, dict) else {}
