"""The local door: for this host's runtime. Has it: serves it. Else asks peers. Else 404 at once, and the runtime goes
upstream.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from starlette.types import Scope
from typing_extensions import override

from peili.mirror.doors.base import Door, requested_descriptor
from peili.mirror.doors.request_metrics import request_record
from peili.mirror.doors.response import ResponseWriter, out_of_range
from peili.mirror.doors.stored import send_stored
from peili.mirror.errors import NotFound, Unavailable
from peili.mirror.metrics.counters import FROM_PEER, FROM_STORE
from peili.mirror.oci.paths import Endpoint, Target
from peili.mirror.oci.ranges import Span, Unsatisfiable
from peili.mirror.oci.references import Descriptor, Digest
from peili.mirror.oci.refusal import HTTPError
from peili.mirror.parts import Parts
from peili.mirror.relay.transfer import Transfer
from peili.mirror.support.deadlines import Deadline


class LocalDoor(Door):
    """Answers this host's runtime."""

    def __init__(self, parts: Parts, log: logging.Logger) -> None:
        super().__init__(parts, log)
        self._resolver = parts.resolver
        self._relay = parts.relay

    @override
    async def content(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        """A tag goes to the resolver; from there on there is only a digest."""
        digest = target.digest or await self._resolve(target)
        target = replace(target, digest=digest, tag=None)
        request_record(scope).source = FROM_STORE
        if not await self._from_store(target, digest, response):
            request_record(scope).source = FROM_PEER
            await self._from_peers(target, digest, response)

    async def _resolve(self, target: Target) -> Digest:
        bound = Deadline(self.limits.first_byte_timeout)
        try:
            async with bound:
                descriptor = await self._resolver.resolve(self.reference(target))
        except Unavailable as error:
            raise NotFound(f"{target.name} can't be resolved: {error}") from error
        except NotFound:
            raise
        except Exception as error:  # a stranger's resolver may raise anything, and must not make a pull worse
            if bound.expired():
                self.metrics.limited.add("first_byte_timeout")
                raise NotFound(f"{target.name} can't be resolved in time") from error
            self.log.exception("%s: the resolver failed", target.name)
            raise NotFound(f"{target.name} can't be resolved") from error
        if descriptor is None:
            raise NotFound(f"{target.name} is for upstream to resolve")
        return descriptor.digest

    async def _from_store(self, target: Target, digest: Digest, response: ResponseWriter) -> bool:
        """Never content in flight: the ingest that this very request has to fill would wait for itself."""
        descriptor = await self._describe(digest)
        if descriptor is None:
            return False
        try:
            await send_stored(response, self.opener, requested_descriptor(target, descriptor))
        except (NotFound, Unavailable):
            if response.started:
                raise
            return False
        return True

    async def _describe(self, digest: Digest) -> Descriptor | None:
        """What the store says of `digest`; None where it does not have it, or can't say so in time."""
        try:
            return await self.ask_store(self.store.describe(digest))
        except (NotFound, Unavailable):
            return None
        except Exception:
            self.log.exception("%s: the store failed", digest)
            return None

    async def _from_peers(self, target: Target, digest: Digest, response: ResponseWriter) -> None:
        manifest, bodiless = target.endpoint is Endpoint.MANIFEST, response.is_bodiless(digest)
        wanted = None if manifest or bodiless else response.range(digest)
        async with self._relay.transfer(digest, target.path, wanted=wanted, manifest=manifest) as transfer:
            if bodiless:
                await self._head_from_peers(target, transfer, response)
                return
            try:
                span = await transfer.begin()
            except Unsatisfiable as error:
                raise out_of_range(error) from error
            try:
                descriptor = requested_descriptor(target, Descriptor(transfer.media_type, digest, span.size))
                if manifest:  # which is in hand, whole
                    span = response.span(digest, span.size)
                    transfer.narrow(span)
            except (NotFound, HTTPError):
                transfer.answered()
                raise
            # The whole is answered with 200 even to "bytes=0-": a runtime that would go on to fetch parallel parts,
            # which can't be verified, then reads one stream, which is. For some it also has to have no length.
            if await response.begin(descriptor, span, partial=not span.is_whole, one_stream=transfer.takes_one_stream):
                await transfer.pour(response)
                await response.end()

    async def _head_from_peers(self, target: Target, transfer: Transfer, response: ResponseWriter) -> None:
        """A condition counts only where there is something (RFC 9110, 13.2.1)."""
        descriptor = requested_descriptor(target, await transfer.describe())
        if not await response.not_modified(descriptor.digest):
            await response.begin(descriptor, Span.whole(descriptor.size), partial=False)
