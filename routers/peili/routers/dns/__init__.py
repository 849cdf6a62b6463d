"""The router that finds peers by DNS: addresses of a name, or SRV records. `DnsRouter` is the public name."""

from peili.routers.dns.router import DnsRouter

__all__ = ["DnsRouter"]
