"""The containerd store. What is exported is its interface; the modules beside are its own affair."""

from peili.stores.containerd.store import ContainerdStore

__all__ = ["ContainerdStore"]
