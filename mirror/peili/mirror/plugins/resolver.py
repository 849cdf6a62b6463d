"""Which digest a tag means, and whom to believe: the interface of resolvers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from peili.mirror.oci.references import Descriptor, Reference
from peili.mirror.plugins.plugin import Plugin

if TYPE_CHECKING:
    from peili.mirror.plugins.loading import Plugins


class Resolver(Plugin):
    """Which digest a tag means."""

    @classmethod
    def from_plugins(cls, config: Mapping[str, Any], plugins: Plugins) -> Self:
        """Like `from_config`, for a resolver that is made of others, which `plugins` builds by name."""
        return cls.from_config(config)

    @abstractmethod
    async def resolve(self, reference: Reference) -> Descriptor | None:
        """What `reference` means; None: no opinion, the runtime asks upstream.

        May be called concurrently; bounded in time. Raises Unavailable, which counts as None.
        """
