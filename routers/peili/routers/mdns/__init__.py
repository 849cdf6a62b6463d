"""Peers that announce themselves by multicast DNS."""

from peili.routers.mdns.router import MdnsRouter

__all__ = ["MdnsRouter"]
