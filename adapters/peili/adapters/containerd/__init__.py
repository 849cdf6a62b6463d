"""containerd's own configuration: its hosts.toml files, which say whom it asks for an image.

`HostsFiles` changes them, `ContainerdHosts` does it as long as a mirror runs.
"""

from peili.adapters.changes import Change, Outcome, Problem
from peili.adapters.containerd.extension import ContainerdHosts
from peili.adapters.containerd.hosts import HostsFiles
from peili.adapters.containerd.showing import Shown

__all__ = ["Change", "ContainerdHosts", "HostsFiles", "Outcome", "Problem", "Shown"]
