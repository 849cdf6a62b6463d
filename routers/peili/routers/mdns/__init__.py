"""The router that finds peers by multicast DNS. `MdnsRouter` is the public name."""

from peili.routers.mdns.router import MdnsRouter

__all__ = ["MdnsRouter"]
