"""The built-in resolvers: which digest a tag means, by whom they believe."""

from peili.mirror.resolvers.resolvers import ChainResolver, DeferResolver, LocalResolver, PeersResolver

__all__ = ["ChainResolver", "DeferResolver", "LocalResolver", "PeersResolver"]
