"""Decides whether this host's runtime may have what it requests.

The registry decides about a covered repository (covered.py). The content of all other repositories may be had, except
what this host knows only from covered ones (repositories.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from peili.mirror.errors import NotFound
from peili.mirror.metrics.counters import CONFIRMED, UNCONFIRMED
from peili.mirror.oci.references import Digest
from peili.mirror.oci.requests import DENIED, Endpoint, HTTPError, Target
from peili.mirror.plugins.calls import has_whole
from peili.mirror.plugins.interfaces import Context
from peili.mirror.rights.covered import CoveredAccess
from peili.mirror.rights.credentials import ANYBODY, Credentials
from peili.mirror.rights.manifests import ManifestChildren
from peili.mirror.rights.policy import PullRights
from peili.mirror.rights.registry_answers import RegistryAnswers, Resource
from peili.mirror.rights.repositories import Repositories
from peili.mirror.upstream.answers import Challenged, Readable
from peili.mirror.upstream.client import UpstreamClient


@dataclass(frozen=True, slots=True)
class Permit:
    """What the runtime may have.

    Attributes:
        is_checked: Whether the registry says so, now or before. Other hosts are told that.
        uses_store: Whether it may come from this host's store. If not, the store did not have it.
    """

    is_checked: bool
    uses_store: bool = True


class Gate:
    """Decides about the requests to the local door. Used on one event loop, concurrently.

    A decision takes at most twice ``limits.upstream_timeout`` seconds, and the time of a few calls of the store. A
    registry that does not answer delays only what it has to decide about, and then not each request.

    Args:
        context: The context of the mirror.
        client: Asks the registries.
        rights: What the operator decided.
        count: Counts a decision; its argument is one of the words in ``metrics/counters.py``.

    Attributes:
        repositories: To whom content of this host belongs.
        manifests: What manifests refer to.
    """

    def __init__(
        self,
        context: Context,
        client: UpstreamClient,
        rights: PullRights,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.manifests = ManifestChildren(context)
        self.repositories = Repositories(context, rights.coverage, self.manifests, rights.ttl)
        self._context = context
        self._coverage = rights.coverage
        self._takes_passwords = rights.basic
        self._count = count
        self._credentials = Credentials()
        self._answers = RegistryAnswers(context, client)
        self._covered = CoveredAccess(context, self._answers, rights, self.manifests, count)

    def covers(self, registry: str | None, repository: str) -> bool:
        """Return whether only those who may read a repository get its images. False if the registry is not known."""
        return registry is not None and self._coverage.covers(registry, repository)

    async def check(self, target: Target, digest: Digest, authorization: str | None) -> Permit:
        """Return what the runtime may have of `digest`.

        Args:
            target: The request. Its registry and repository count.
            digest: The content.
            authorization: The Authorization header of the request. It is sent to the registry, and not kept.

        Raises:
            HTTPError: 401, the registry demands rights; 403, these are not enough.
            NotFound: The registry does not have it or does not answer, or the content belongs only to others.
        """
        if target.registry is None or not self._coverage.covers(target.registry, target.repository):
            return await self._check_uncovered(target, digest, authorization)
        # Also if it is refused: the runtime then gets it from the registry, for this repository.
        self.repositories.arrivals.note_request(digest, is_covered=True)
        resource = Resource(target.registry, target.repository, target.endpoint, digest)
        await self._covered.require(resource, self._credentials.of(authorization))
        self.repositories.arrivals.note_request(digest, is_covered=True, is_granted=True)
        return Permit(is_checked=True)

    async def check_tag(self, target: Target, tag: str, authorization: str | None, *, is_unknown: bool = False) -> None:
        """Check whether the runtime may know whether hosts here know `tag`, and what it means.

        It is called before anybody is asked what the tag means, and once more if nobody knows. So a requester gets the
        same answer as if somebody knew. It does nothing if the repository is not covered.

        Args:
            target: The request. Its registry and repository count.
            tag: The tag.
            authorization: The Authorization header of the request. It is sent to the registry, and not kept.
            is_unknown: Whether nobody knows the tag.

        Raises:
            HTTPError: 401, the registry demands rights; 403, these are not enough.
            NotFound: The registry does not have it or does not answer.
        """
        if target.registry is None or not self._coverage.covers(target.registry, target.repository):
            return
        resource = Resource(target.registry, target.repository, Endpoint.MANIFEST, tag)
        credential = self._credentials.of(authorization)
        if is_unknown:
            await self._covered.require(resource, credential)
        elif credential.is_anonymous:
            await self._covered.demand_rights(resource)

    def relaying(self, digest: Digest) -> AbstractContextManager[None]:
        """Return a context during which content arrives through the relay, and belongs to those who requested it."""
        return self.repositories.arrivals.relaying(digest)

    def note_confirmed(self, target: Target, digest: Digest, authorization: str | None) -> None:
        """Note that the registry has just said, asked with these rights, which manifest a tag means.

        So the runtime may read it. This is used for covered repositories only: others need no grants.

        Args:
            target: The request. Its registry and repository count.
            digest: The manifest.
            authorization: The Authorization header with which the registry was asked.

        Raises:
            HTTPError: 403, no registry could be asked with this header.
        """
        if target.registry is not None and self._coverage.covers(target.registry, target.repository):
            resource = Resource(target.registry, target.repository, Endpoint.MANIFEST, digest)
            self._covered.note_readable(resource, self._credentials.of(authorization))

    def check_scheme(self, target: Target, header: str | None) -> None:
        """Check a header with credentials, or with a challenge, that the resolver passes on, whatever it is for.

        Raises:
            HTTPError: 403, it is about a password, and ``authorize_basic`` is false.
        """
        is_basic = header is not None and header.strip().lower().startswith("basic")
        if is_basic and not self._takes_passwords:
            raise HTTPError(403, DENIED, "authorize_basic is false, so no password is passed on")

    async def run(self) -> None:
        """Follow the store until cancelled. Then the questions in progress end, too."""
        try:
            await self.repositories.run()
        finally:
            await self._answers.aclose()

    async def _check_uncovered(self, target: Target, digest: Digest, authorization: str | None) -> Permit:
        repositories = self.repositories
        if repositories.is_certainly_open(digest):
            return Permit(is_checked=False)
        if await has_whole(self._context, digest) is False:
            repositories.arrivals.note_request(digest, is_covered=False)
            return Permit(is_checked=False, uses_store=False)  # peers decide for themselves
        if await repositories.is_open(digest):
            return Permit(is_checked=False)
        await self._confirm(target, digest, authorization)
        return Permit(is_checked=True)

    async def _confirm(self, target: Target, digest: Digest, authorization: str | None) -> None:
        """Ask the registry whether a repository that is not covered has `digest`, too.

        A registry that the operator has not named is not asked: anybody can run one, which says yes to everything.

        Raises:
            HTTPError: 401, the registry demands rights before it says so.
            NotFound: It has not said so.
        """
        if target.registry is not None and self._trusts(target.registry):
            resource = Resource(target.registry, target.repository, target.endpoint, digest)
            credential = self._credentials.of(authorization)
            if credential.is_basic and not self._takes_passwords:
                credential = ANYBODY  # the password is for nobody
            match await self._answers.ask(credential, resource):
                case Readable():
                    self._count(CONFIRMED)
                    self.repositories.confirm(digest)
                    return
                case Challenged(challenge) if credential.is_anonymous and not target.is_registry_in_path:
                    raise self._covered.challenged(resource, challenge)
                case _:
                    pass
        self._count(UNCONFIRMED)
        raise NotFound(f"{target.name} is not known to be in this repository")

    def _trusts(self, registry: str) -> bool:
        return self._coverage.names(registry) or self._context.selection.names(registry)
