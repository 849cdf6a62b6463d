"""containerd's own configuration: its hosts.toml files, which say whom it asks for an image.

`HostsFiles` changes them, `ContainerdHosts` does it as long as a mirror runs.
"""

from peili.adapters.containerd.extension import ContainerdHosts
from peili.adapters.containerd.hosts_toml.hosts_files import HostsFiles
from peili.adapters.containerd.hosts_toml.status import RegistryStatus
from peili.adapters.files.editor import Change, Outcome, Problem

__all__ = ["Change", "ContainerdHosts", "HostsFiles", "Outcome", "Problem", "RegistryStatus"]
