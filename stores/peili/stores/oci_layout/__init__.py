"""A folder in the OCI image layout."""

from peili.stores.oci_layout.store import OciLayoutStore

__all__ = ["OciLayoutStore"]
