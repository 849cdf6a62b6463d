"""The router whose members Talos has discovered. `TalosRouter` is the public name."""

from peili.routers.talos.router import TalosRouter

__all__ = ["TalosRouter"]
