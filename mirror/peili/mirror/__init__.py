"""peili.mirror: the framework of an embeddable, stateless, peer-to-peer OCI mirror.

What is exported here is the public interface; everything else may change.
"""

from peili.mirror.collector import Collector
from peili.mirror.doors.guard import Auth, loopback_only
from peili.mirror.errors import (
    Aborted,
    ConfigError,
    ListenError,
    NotFound,
    PeerUnavailable,
    PeiliError,
    PluginNotFound,
    RouterUnavailable,
    StoreUnavailable,
    Unavailable,
)
from peili.mirror.limits import Limits
from peili.mirror.listening import Address
from peili.mirror.loading import RESOLVERS, ROUTERS, STORES, Plugins
from peili.mirror.membership import MembershipRouter, PushRouter
from peili.mirror.metrics import Distribution, Family
from peili.mirror.mirror import Mirror
from peili.mirror.peerclient import PeerClient
from peili.mirror.peers import Feed, Holder, Lease, Peer, Upstream, Wait, Want
from peili.mirror.plugin import Context, Plugin
from peili.mirror.references import Descriptor, Digest, Key, Reference, parse_key
from peili.mirror.resolver import Resolver
from peili.mirror.router import Router
from peili.mirror.selection import Selection
from peili.mirror.server import Serving, serve
from peili.mirror.store import Content, Gone, Have, Store, StoreEvent, Synced
from peili.mirror.watchdog import Watchdog

__all__ = [
    "RESOLVERS",
    "ROUTERS",
    "STORES",
    "Aborted",
    "Address",
    "Auth",
    "Collector",
    "ConfigError",
    "Content",
    "Context",
    "Descriptor",
    "Digest",
    "Distribution",
    "Family",
    "Feed",
    "Gone",
    "Have",
    "Holder",
    "Key",
    "Lease",
    "Limits",
    "ListenError",
    "MembershipRouter",
    "Mirror",
    "NotFound",
    "Peer",
    "PeerClient",
    "PeerUnavailable",
    "PeiliError",
    "Plugin",
    "PluginNotFound",
    "Plugins",
    "PushRouter",
    "Reference",
    "Resolver",
    "Router",
    "RouterUnavailable",
    "Selection",
    "Serving",
    "Store",
    "StoreEvent",
    "StoreUnavailable",
    "Synced",
    "Unavailable",
    "Upstream",
    "Wait",
    "Want",
    "Watchdog",
    "loopback_only",
    "parse_key",
    "serve",
]
