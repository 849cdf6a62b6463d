"""What a mirror is made of, as its doors and its running need it."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass

from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.selection import Selection
from peili.mirror.plugins.interfaces import Plugin, Resolver, Router, Store
from peili.mirror.relay.relay import Relay


@dataclass(frozen=True, slots=True)
class Parts:
    """What a mirror is made of."""

    store: Store
    router: Router
    resolver: Resolver
    selection: Selection
    relay: Relay
    limits: Limits
    metrics: Metrics
    log: logging.Logger
    verify: bool
    client_ssl: ssl.SSLContext | None
    default_registry: str | None
    extensions: tuple[Plugin, ...] = ()

    @property
    def plugins(self) -> dict[str, Plugin]:
        """What the doors need, by the name of its part."""
        return {"store": self.store, "router": self.router, "resolver": self.resolver}
