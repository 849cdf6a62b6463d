"""The registries.yaml of k3s and RKE2, which says whom containerd asks for an image.

`RegistriesFile` changes it. What k3s makes of it when it starts, hosts.toml files among them, is k3s's, and never
edited.
"""

from peili.adapters.k3s.file import FILES, RegistriesFile, present
from peili.adapters.k3s.showing import Shown

__all__ = ["FILES", "RegistriesFile", "Shown", "present"]
