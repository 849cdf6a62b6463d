"""The interface of resolvers, which say what a tag means, and the values that they return."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from starlette.routing import BaseRoute

from peili.mirror.errors import Unavailable
from peili.mirror.oci.references import Descriptor, Digest, Reference
from peili.mirror.oci.requests import Requester
from peili.mirror.plugins.checks import answer
from peili.mirror.plugins.interfaces import Plugin

_Item = TypeVar("_Item")


class ResolverLoader(Protocol):
    """Constructs resolvers by name, as `Plugins` does."""

    def resolver(self, kind: str, options: Mapping[str, Any]) -> Resolver:
        """Return the resolver `kind`, constructed from its options.

        Args:
            kind: The name of the resolver.
            options: Its section of the configuration, without ``kind``.

        Raises:
            PluginNotFound: There is no resolver `kind`.
            ConfigError: An option is unknown or wrong.
        """
        ...


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a tag means.

    Attributes:
        descriptor: The content.
        warning: What to think of it, as the value of a Warning header (RFC 7234, 5.5), for example that it may be old;
            None if there is nothing to say.
        is_confirmed: Whether the registry has just said it to this requester, who may therefore read the content.
    """

    descriptor: Descriptor
    warning: str | None = None
    is_confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Listed(Generic[_Item]):
    """What a repository has.

    Attributes:
        items: The tags, or the descriptors of referrers as JSON objects.
        warning: As in `Resolution`.
    """

    items: Sequence[_Item] = ()
    warning: str | None = None


class Resolver(Plugin):
    """Which digest a tag means.

    A resolver that asks the registry with the rights of the runtime overrides `resolve_for`; all others need only
    `resolve`.
    """

    @classmethod
    def from_plugins(cls, config: Mapping[str, Any], plugins: ResolverLoader) -> Self:
        """Construct a resolver that is made of other resolvers.

        Args:
            config: As for `from_config`.
            plugins: Constructs the other resolvers.

        Raises:
            ConfigError: An option is unknown or wrong.
        """
        return cls.from_config(config)

    @abstractmethod
    async def resolve(self, reference: Reference) -> Descriptor | None:
        """Return the descriptor that `reference` means; None if the resolver does not know, so that upstream decides.

        May be called concurrently. Takes bounded time.

        Raises:
            Unavailable: The resolver can't answer now. This counts as None.
        """

    async def resolve_for(self, reference: Reference, requester: Requester) -> Resolution | None:
        """Return what `reference` means, to answer a request of the runtime.

        By default, it is what `resolve` returns. May be called concurrently. Takes bounded time.

        Args:
            reference: The reference.
            requester: Who asks.

        Raises:
            AuthorizationRequired: The registry wants to know who asks.
            Unavailable: The resolver can't answer now. This counts as None.
        """
        descriptor = await answer(self.resolve(reference), Descriptor, f"{type(self).__name__}.resolve", optional=True)
        return None if descriptor is None else Resolution(descriptor)

    def routes(self) -> Sequence[BaseRoute]:
        """Return the routes for other hosts: served below ``/_resolver`` of the peer door, behind its access check.

        As for `Router.routes`.
        """
        return ()

    async def tags(self, registry: str, repository: str, stored: Collection[str]) -> Collection[str]:
        """Return the tags of a repository for which `resolve` has an answer. Takes bounded time.

        By default, they are those of `stored` for which it has one. Override this if `resolve` also answers for others.

        Args:
            registry: The registry.
            repository: The repository.
            stored: The tags that this host's store can serve.

        Raises:
            Unavailable: The resolver can't answer now. This counts as no tags.
        """
        found: list[str] = []
        for tag in stored:
            with suppress(Unavailable):
                if await self.resolve(Reference(registry, repository, tag)) is not None:
                    found.append(tag)
        return found

    async def tags_for(
        self, registry: str, repository: str, stored: Collection[str], requester: Requester
    ) -> Listed[str]:
        """Return the tags of a repository, to answer a request of the runtime. By default, they are those of `tags`.

        Args:
            registry: The registry.
            repository: The repository.
            stored: The tags that this host's store can serve.
            requester: Who asks.

        Raises:
            AuthorizationRequired: The registry wants to know who asks.
            Unavailable: The resolver can't answer now. This counts as no tags.
        """
        return Listed(tuple(await self.tags(registry, repository, stored)))

    async def referrers_for(
        self, registry: str, repository: str, digest: Digest, requester: Requester
    ) -> Listed[Mapping[str, Any]] | None:
        """Return the descriptors of what refers to `digest`, such as signatures, to answer a request of the runtime.

        By default it is None: the resolver does not know, so that the runtime asks upstream. Takes bounded time.

        Args:
            registry: The registry.
            repository: The repository.
            digest: The digest of a manifest.
            requester: Who asks.

        Raises:
            AuthorizationRequired: The registry wants to know who asks.
            Unavailable: The resolver can't answer now. This counts as None.
        """
        return None
