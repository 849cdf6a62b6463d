"""The built-in resolvers. A resolver decides which digest a tag means."""

from peili.mirror.resolvers.chain import ChainResolver
from peili.mirror.resolvers.local import DeferResolver, LocalResolver
from peili.mirror.resolvers.peers import PeersResolver
from peili.mirror.resolvers.upstream import UpstreamResolver

__all__ = ["ChainResolver", "DeferResolver", "LocalResolver", "PeersResolver", "UpstreamResolver"]
