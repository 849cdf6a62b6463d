"""Finds out whether all of an image is available, for runtimes that do not go upstream for a part of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.oci.children import Children, children_of, host_platform
from peili.mirror.oci.references import MAX_MANIFEST, Digest
from peili.mirror.oci.requests import Endpoint, HTTPError, Target
from peili.mirror.plugins.calls import call, has_whole
from peili.mirror.plugins.content import read_whole
from peili.mirror.plugins.interfaces import Context, Store
from peili.mirror.relay.relay import Relay
from peili.mirror.rights.gate import Gate
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import Tasks

_MAX_CHILDREN = 1024
_MAX_LOOKUPS = 16  # at the same time
_MAX_DEPTH = 4  # of an index in an index


class WholeImages:
    """Checks images in the store and at peers.

    Podman, CRI-O and skopeo take a manifest from a mirror and then ask that mirror for all of its children. If one is
    missing, the pull fails, although the registry has it. So such a runtime must not get the manifest at all.

    Args:
        context: The context of the local door.
        relay: Fetches manifests that the store does not have.
        gate: Decides who may have what; None if everybody may have everything.
    """

    def __init__(self, context: Context, relay: Relay, gate: Gate | None = None) -> None:
        self._context = context
        self._gate = gate
        self._relay = relay
        self._platform = host_platform()

    async def require(self, target: Target, digest: Digest, authorization: str | None = None) -> None:
        """Return if this host or its peers have everything that a runtime on this host needs of an image, and give it.

        It takes at most ``limits.first_byte_timeout`` seconds.

        Args:
            target: The request for the manifest or the index.
            digest: Its digest.
            authorization: The Authorization header of the request.

        Raises:
            NotFound: Something is missing, or it could not be found out in time.
        """
        deadline = Deadline(self._context.limits.first_byte_timeout)
        try:
            async with deadline:
                await self._require_all(target, digest, authorization)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            self._context.limited("first_byte_timeout")
            raise NotFound(f"whether all of {target.name} is available was not found out in time") from error

    async def _require_all(self, target: Target, digest: Digest, authorization: str | None) -> None:
        manifests: Iterable[Digest] = [digest]
        blobs: dict[Digest, None] = {}
        for _ in range(_MAX_DEPTH):
            deeper: dict[Digest, None] = {}
            for each in manifests:
                of_child = replace(target, endpoint=Endpoint.MANIFEST, digest=each, tag=None)
                if each != digest:  # the caller has asked the gate about that one
                    of_child = await self._check_child(target, of_child, each, authorization)
                children = await self._children(target, of_child, each)
                deeper |= dict.fromkeys(children.manifests)
                blobs |= dict.fromkeys(children.blobs)
                if len(blobs) + len(deeper) > _MAX_CHILDREN:
                    raise NotFound(f"{target.name} has more than {_MAX_CHILDREN} children")
            if not deeper:
                await self._require_blobs(replace(target, endpoint=Endpoint.BLOB, tag=None), blobs, authorization)
                return
            manifests = deeper
        raise NotFound(f"{target.name} has indexes in indexes")

    async def _check_child(self, target: Target, child: Target, digest: Digest, authorization: str | None) -> Target:
        """Return the request for a manifest that an index names. Anybody can write an index. Raises NotFound."""
        if self._gate is None:
            return child
        try:
            permit = await self._gate.check(child, digest, authorization)
        except (HTTPError, NotFound) as error:
            raise NotFound(f"{target.name} is not complete: a manifest of it is not given here") from error
        return replace(child, is_checked=permit.is_checked)

    async def _children(self, target: Target, child: Target, digest: Digest) -> Children:
        try:
            data = await self._read(child, digest)
            return children_of(data, self._platform)
        except (ValueError, RecursionError) as error:
            raise NotFound(f"{target.name} can't be pulled from here: {error}") from error
        except NotFound as error:
            raise NotFound(f"{target.name} is not complete: {digest} is missing") from error

    async def _read(self, target: Target, digest: Digest) -> bytes:
        """Return the bytes of a manifest. Raises NotFound."""
        read = partial(_read_from_store, self._context.store, digest)
        try:
            return await call(
                read, self._context, "the store", about=digest, allowed=(NotFound, Unavailable, Aborted, ValueError)
            )
        except (NotFound, Unavailable, Aborted):
            pass
        async with self._relay.open_transfer(digest, target, is_manifest=True) as transfer:
            await transfer.begin()
            data = transfer.data
            transfer.complete()
        if data is None:
            raise NotFound(f"{digest} was not collected")
        if self._gate is not None:  # who may have it may have its children, without another question for each
            self._gate.manifests.note(digest, data)
        return data

    async def _require_blobs(self, target: Target, blobs: Iterable[Digest], authorization: str | None) -> None:
        turns = asyncio.Semaphore(_MAX_LOOKUPS)
        async with Tasks() as tasks:
            lookups = [tasks.start(self._find(turns, replace(target, digest=each), authorization)) for each in blobs]
            for each in asyncio.as_completed(lookups):
                if (missing := await each) is not None:
                    raise NotFound(f"{target.name} is not complete: {missing} is missing")

    async def _find(self, turns: asyncio.Semaphore, target: Target, authorization: str | None) -> Digest | None:
        """Return None if this host or a peer has the whole blob and gives it, else its digest."""
        digest = target.digest
        if digest is None:
            return None
        async with turns:
            return None if await self._is_given(target, digest, authorization) else digest

    async def _is_given(self, target: Target, digest: Digest, authorization: str | None) -> bool:
        """Return whether this host gives the blob, or a peer says that it does.

        The peer itself is asked: what a router says may be out of date, and a peer may have the blob for others only.
        """
        try:
            uses_store = True
            if self._gate is not None:
                permit = await self._gate.check(target, digest, authorization)
                uses_store, target = permit.uses_store, replace(target, is_checked=permit.is_checked)
            if uses_store and await has_whole(self._context, digest):
                return True
            async with self._relay.open_transfer(digest, target) as transfer:
                await transfer.describe()
        except (HTTPError, NotFound):
            return False
        return True


async def _read_from_store(store: Store, digest: Digest) -> bytes:
    """Return the whole content of a manifest. Raises NotFound, Unavailable, Aborted; ValueError if it is too large."""
    async with await store.open(digest) as content:
        return await read_whole(content, MAX_MANIFEST)
