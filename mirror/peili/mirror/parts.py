"""What a mirror is made of, as its doors and its running need it."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass

from peili.mirror.limits import Limits
from peili.mirror.metrics import Metrics
from peili.mirror.plugin import Plugin
from peili.mirror.relay.relay import Relay
from peili.mirror.resolver import Resolver
from peili.mirror.router import Router
from peili.mirror.selection import Selection
from peili.mirror.store import Store


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
