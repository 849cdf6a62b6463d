"""Edits the registries.yaml of k3s and RKE2, which lists the mirrors of each registry.

When k3s starts, it generates containerd's hosts.toml files from registries.yaml. peili never edits generated files.
"""

from peili.adapters.k3s.registries_file import FILES, K3sRegistryView, RegistriesFile, installed_files

__all__ = ["FILES", "K3sRegistryView", "RegistriesFile", "installed_files"]
