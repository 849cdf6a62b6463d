"""Helpers for tests of host agents and plug-ins. They need no test framework.

A conformance kit checks every promise of an interface. It takes a factory that creates the object to check, and raises
`ConformanceError`, which names the broken promise. There are also images to serve and to pull, peers for routers, and
`entered`, which enters a plug-in alone.
"""

from peili.mirror.oci.children import host_platform
from peili.mirror.testing.conformance import ConformanceError, check_options
from peili.mirror.testing.content_kit import Arrival, ContentFactory, ContentSubject, check_content
from peili.mirror.testing.contexts import context_for, entered
from peili.mirror.testing.images import Image, Manifest, make_layout, pack_tar, pull
from peili.mirror.testing.membership_kit import MembershipFactory, MembershipSubject, check_membership_router
from peili.mirror.testing.neighbours import Neighbour, neighbour
from peili.mirror.testing.resolver_kit import ResolverFactory, ResolverSubject, check_resolver
from peili.mirror.testing.router_kit import RouterFactory, RouterSubject, check_router
from peili.mirror.testing.store_kit import check_store
from peili.mirror.testing.store_subject import StoreFactory, StoreSubject, Watched, watching

__all__ = [
    "Arrival",
    "ConformanceError",
    "ContentFactory",
    "ContentSubject",
    "Image",
    "Manifest",
    "MembershipFactory",
    "MembershipSubject",
    "Neighbour",
    "ResolverFactory",
    "ResolverSubject",
    "RouterFactory",
    "RouterSubject",
    "StoreFactory",
    "StoreSubject",
    "Watched",
    "check_content",
    "check_membership_router",
    "check_options",
    "check_resolver",
    "check_router",
    "check_store",
    "context_for",
    "entered",
    "host_platform",
    "make_layout",
    "neighbour",
    "pack_tar",
    "pull",
    "watching",
]
