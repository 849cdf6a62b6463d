"""Decides about a request for covered content: the registry says whether its rights are enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from peili.mirror.errors import NotFound, Unavailable
from peili.mirror.metrics.counters import CHALLENGED, GRANTED, OUTAGE, REFUSED, REMEMBERED
from peili.mirror.oci.references import Digest
from peili.mirror.oci.requests import DENIED, UNAUTHORIZED, Endpoint, HTTPError
from peili.mirror.plugins.interfaces import Context
from peili.mirror.rights.credentials import Credential
from peili.mirror.rights.grants import Grants, Scope
from peili.mirror.rights.manifests import ManifestChildren
from peili.mirror.rights.policy import PullRights
from peili.mirror.rights.registry_answers import RegistryAnswers, Resource
from peili.mirror.upstream.answers import Absent, Answer, Challenged, Denied, Readable, Unreachable
from peili.mirror.upstream.challenges import Challenge


@dataclass(frozen=True, slots=True)
class _Case:
    """One request.

    Attributes:
        resource: What it is for.
        credential: What it shows.
        was_granted: Whether anybody on this host was granted the same lately, and that counts in an outage.
    """

    resource: Resource
    credential: Credential
    was_granted: bool = False

    @property
    def scope(self) -> Scope:
        """Where the answer of the registry holds."""
        return Scope(self.credential.key, self.resource.scope)

    @property
    def scope_of_all(self) -> Scope:
        """Where it holds in an outage."""
        return Scope(b"", self.resource.scope)


class CoveredAccess:
    """Asks the registry about rights, and remembers what it allows. Used on one event loop, concurrently.

    Args:
        context: The context of the mirror.
        answers: Asks registries.
        rights: What the operator decided.
        manifests: What manifests refer to: who may read a manifest may read that, too.
        count: Counts a decision.
        clock: Seconds that never go back.
        wall: Seconds since 1970.
    """

    def __init__(
        self,
        context: Context,
        answers: RegistryAnswers,
        rights: PullRights,
        manifests: ManifestChildren,
        count: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._context = context
        self._answers = answers
        self._rights = rights
        self._manifests = manifests
        self._count = count
        self._wall = wall
        self._grants = Grants(rights.ttl, context.limits.grants, clock, wall)
        self._earlier = Grants(rights.grace, context.limits.grants, clock, wall)

    async def demand_rights(self, resource: Resource) -> None:
        """Return if a request without rights may get more than a challenge, whatever is here.

        Raises:
            HTTPError: 401, the registry demands rights; 403, it wants a password.
            NotFound: The registry does not answer.
        """
        if self._rights.serves_in_outage:
            return  # what was granted before
        match await self._answers.demand(resource.registry):
            case Challenged(challenge):
                raise self.challenged(resource, challenge)
            case Unreachable(why):
                raise self._outage(resource, why)
            case None:
                pass

    async def require(self, resource: Resource, credential: Credential) -> None:
        """Return if the runtime may have `resource`, or know what it means if it is a tag.

        Raises:
            HTTPError: 401, the registry demands rights; 403, these are not enough.
            NotFound: The registry does not have it, or does not answer.
        """
        if credential.is_basic and not self._rights.basic:
            raise self._refusal("authorize_basic is false, so a password is not passed on")
        await self._require(_Case(resource, credential))
        if self._rights.serves_in_outage:
            await self._answers.prepare(resource.registry)

    async def _require(self, case: _Case) -> None:
        digest = case.resource.digest
        if digest is not None and await self._has(self._grants, case.scope, digest):
            self._count(REMEMBERED)
            return
        if digest is not None and self._rights.serves_in_outage:
            case = replace(case, was_granted=await self._has(self._earlier, case.scope_of_all, digest))
        self._apply(case, await self._ask(case))

    def note_readable(self, resource: Resource, credential: Credential) -> None:
        """Remember that the registry has let the runtime read `resource`, when another part of the mirror asked it."""
        self._remember(_Case(resource, credential), resource.digest)

    def challenged(self, resource: Resource, challenge: Challenge) -> HTTPError:
        """Return the response that lets the runtime get rights where the registry says."""
        if challenge.is_basic and not self._rights.basic:
            return self._refusal("the registry wants a password, and authorize_basic is false")
        self._count(CHALLENGED)
        header = {"WWW-Authenticate": str(challenge.for_repository(resource.repository))}
        return HTTPError(401, UNAUTHORIZED, f"{resource.registry} decides who may pull {resource.repository}", header)

    async def _ask(self, case: _Case) -> Answer:
        if case.credential.is_anonymous:
            return await self._answers.ask_for_anybody(case.resource, is_doubted=case.was_granted)
        return await self._answers.ask(case.credential, case.resource)

    def _apply(self, case: _Case, answer: Answer) -> None:
        """Do what the registry says: return, or raise an error."""
        resource = case.resource
        match answer:
            case Readable(descriptor):
                said = None if descriptor is None else descriptor.digest
                self._remember(case, resource.digest or said)
            case Challenged(challenge):
                if case.credential.is_anonymous or self._has_expired(case):
                    raise self.challenged(resource, challenge)
                raise self._refusal("the registry does not accept these rights")
            case Denied(why):
                raise self._refusal(f"the registry says no: {why}")
            case Absent():
                self._count(REFUSED)
                raise NotFound(f"{resource.scope} does not have it")  # of a tag, the requester may not know the digest
            case Unreachable(why, is_down=is_down):
                error = self._outage(resource, why)
                if not (case.was_granted and is_down):
                    raise error
                self._context.log.info("%s: served, because it was granted here before: %s", resource, error)

    def _has_expired(self, case: _Case) -> bool:
        """Return whether the runtime should get a new token: this one was good, or says that its time is over."""
        credential = case.credential
        if credential.is_basic:
            return False
        is_over = credential.expires is not None and credential.expires <= self._wall()
        return is_over or self._grants.has_been_granted(case.scope)

    def _remember(self, case: _Case, digest: Digest | None) -> None:
        self._count(GRANTED)
        if digest is None:
            return
        is_manifest = case.resource.endpoint is Endpoint.MANIFEST
        is_full = self._grants.add(case.scope, digest, case.credential.expires, is_manifest=is_manifest)
        is_full |= self._earlier.add(case.scope_of_all, digest, is_manifest=is_manifest)
        if is_full:
            self._context.limited("grants")

    async def _has(self, grants: Grants, scope: Scope, digest: Digest) -> bool:
        """Return whether `digest` may be read, or a manifest that refers to it."""
        if grants.has(scope, digest):
            return True
        try:
            parent = await self._manifests.find_parent(digest, grants.manifests(scope))
        except Unavailable:
            return False
        if parent is not None:
            grants.inherit(scope, digest, parent)
        return parent is not None

    def _refusal(self, why: str) -> HTTPError:
        self._count(REFUSED)
        return HTTPError(403, DENIED, why)

    def _outage(self, resource: Resource, why: str) -> NotFound:
        self._count(OUTAGE)
        return NotFound(f"{resource.registry} does not say who may pull: {why}")
