"""The adapter for containerd, whose hosts.toml files say from which hosts it pulls images.

`HostsFiles` edits these files. `ContainerdHosts` does so while a mirror runs.
"""

from peili.adapters.containerd.extension import ContainerdHosts
from peili.adapters.containerd.hosts_toml.hosts_files import HostsFiles
from peili.adapters.containerd.hosts_toml.status import RegistryStatus
from peili.adapters.files.editor import Change, Outcome, Problem

__all__ = ["Change", "ContainerdHosts", "HostsFiles", "Outcome", "Problem", "RegistryStatus"]
