"""Images for tests; the maker is public, so that agents' authors have it, too."""

from __future__ import annotations

from peili.mirror.testing.images import Image, Manifest, host_platform, make_layout, pack_tar

__all__ = ["Image", "Manifest", "host_platform", "make_layout", "pack_tar"]
