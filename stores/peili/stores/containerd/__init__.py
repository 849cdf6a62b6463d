"""The containerd store: serves what this host's containerd has.

`ContainerdStore` is the public name. The other modules are internal.
"""

from peili.stores.containerd.store import ContainerdStore

__all__ = ["ContainerdStore"]
