"""Peers that a Talos machine discovered."""

from peili.routers.talos.router import TalosRouter

__all__ = ["TalosRouter"]
