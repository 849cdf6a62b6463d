"""The OCI layout store: serves an image layout in a directory. `OciLayoutStore` is the public name."""

from peili.stores.oci_layout.store import OciLayoutStore

__all__ = ["OciLayoutStore"]
