"""The framework of an embeddable, stateless, peer-to-peer OCI mirror.

The names that are exported here are the public interface. All others may change at any time.
"""

from peili.mirror.client.client import PeerClient
from peili.mirror.collector import Collector
from peili.mirror.content.files import FileContent, open_below, open_in_thread, open_regular
from peili.mirror.content.growing import GrowingFileContent
from peili.mirror.content.inventory import Inventory
from peili.mirror.doors.access import Auth, clients_in, loopback_only
from peili.mirror.errors import (
    Aborted,
    AuthorizationRequired,
    ConfigError,
    FailureReason,
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
from peili.mirror.membership.router import MembershipRouter, PushRouter
from peili.mirror.metrics.families import Distribution, Family
from peili.mirror.mirror import Mirror
from peili.mirror.oci.references import (
    MAX_MANIFEST,
    OCTET_STREAM,
    Descriptor,
    Digest,
    Key,
    Reference,
    detect_media_type,
    is_manifest,
    is_registry,
    looks_like_registry,
    parse_key,
)
from peili.mirror.oci.requests import Requester
from peili.mirror.oci.selection import Selection, check_registries
from peili.mirror.peer_api.addresses import AddressKinds
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Holder, Peer, UnreachablePeer, base_url, is_identity
from peili.mirror.plugins.acquiring import Feed, Lease, LeaseEnd, Upstream, Wait, Want
from peili.mirror.plugins.content import Content, Gone, Have, StoreEvent, Synced
from peili.mirror.plugins.interfaces import Context, Plugin, Router, Store, running_already
from peili.mirror.plugins.loading import RESOLVERS, ROUTERS, STORES, Plugins
from peili.mirror.plugins.resolver import Listed, Resolution, Resolver, ResolverLoader
from peili.mirror.rights.policy import PullRights
from peili.mirror.serve import Serving, serve
from peili.mirror.server.listening import Address
from peili.mirror.server.protocol import http_protocol
from peili.mirror.support.options import Options
from peili.mirror.support.tasks import Backoff, Broadcast, Tasks, is_cancelled
from peili.mirror.support.watchdog import Watchdog
from peili.mirror.tls.identities import peer_identity
from peili.mirror.tls.local_certificate import LocalCertificate
from peili.mirror.tls.peer_certificates import PeerCertificates
from peili.mirror.tls.peer_keys import PeerKeys
from peili.mirror.tls.peer_tls import PeerTLS, TLSContexts
from peili.mirror.tls.pem_files import check_private
from peili.mirror.upstream.api_roots import ApiRoot, RootFinder, default_roots

__all__ = [
    "IDENTITY_HEADER",
    "MAX_MANIFEST",
    "OCTET_STREAM",
    "RESOLVERS",
    "ROUTERS",
    "STORES",
    "Aborted",
    "Address",
    "AddressKinds",
    "ApiRoot",
    "Auth",
    "AuthorizationRequired",
    "Backoff",
    "Broadcast",
    "Collector",
    "ConfigError",
    "Content",
    "Context",
    "Descriptor",
    "Digest",
    "Distribution",
    "FailureReason",
    "Family",
    "Feed",
    "FileContent",
    "Gone",
    "GrowingFileContent",
    "Have",
    "Holder",
    "Inventory",
    "Key",
    "Lease",
    "LeaseEnd",
    "Limits",
    "Listed",
    "ListenError",
    "LocalCertificate",
    "MembershipRouter",
    "Mirror",
    "NotFound",
    "Options",
    "Peer",
    "PeerCertificates",
    "PeerClient",
    "PeerKeys",
    "PeerTLS",
    "PeerUnavailable",
    "PeiliError",
    "Plugin",
    "PluginNotFound",
    "Plugins",
    "PullRights",
    "PushRouter",
    "Reference",
    "Requester",
    "Resolution",
    "Resolver",
    "ResolverLoader",
    "RootFinder",
    "Router",
    "RouterUnavailable",
    "Selection",
    "Serving",
    "Store",
    "StoreEvent",
    "StoreUnavailable",
    "Synced",
    "TLSContexts",
    "Tasks",
    "Unavailable",
    "UnreachablePeer",
    "Upstream",
    "Wait",
    "Want",
    "Watchdog",
    "base_url",
    "check_private",
    "check_registries",
    "clients_in",
    "default_roots",
    "detect_media_type",
    "http_protocol",
    "is_cancelled",
    "is_identity",
    "is_manifest",
    "is_registry",
    "looks_like_registry",
    "loopback_only",
    "open_below",
    "open_in_thread",
    "open_regular",
    "parse_key",
    "peer_identity",
    "running_already",
    "serve",
]
