"""Reads the machine configuration of Talos, which lists the mirrors of each registry, and writes patches for it.

`parse_config` reads it; `patch_to_apply` and `patch_to_remove` write patches. The router that finds Talos's members is
`peili.routers.talos`.
"""

from peili.adapters.talos.machine_config import (
    InvalidMachineConfig,
    MachineConfig,
    MirrorEndpoint,
    RegistryMirrors,
    parse_config,
)
from peili.adapters.talos.patches import MachineConfigPatch, merge_patch, patch_to_apply, patch_to_remove

__all__ = [
    "InvalidMachineConfig",
    "MachineConfig",
    "MachineConfigPatch",
    "MirrorEndpoint",
    "RegistryMirrors",
    "merge_patch",
    "parse_config",
    "patch_to_apply",
    "patch_to_remove",
]
