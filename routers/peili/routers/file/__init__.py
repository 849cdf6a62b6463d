"""The router whose members a file lists. `FileRouter` is the public name."""

from peili.routers.file.router import FileRouter

__all__ = ["FileRouter"]
