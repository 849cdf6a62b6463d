"""Talos's machine configuration: whom a machine asks for images.

`read` reads it, `putting_first` and `taking_away` write patches of it. Its members as a router's source are in
`peili.routers.talos.router`.
"""

from peili.adapters.talos.machineconfig import Endpoint, MachineConfig, Mirrors, Unusable, read
from peili.adapters.talos.patch import Patch, merged, putting_first, taking_away

__all__ = [
    "Endpoint",
    "MachineConfig",
    "Mirrors",
    "Patch",
    "Unusable",
    "merged",
    "putting_first",
    "read",
    "taking_away",
]
