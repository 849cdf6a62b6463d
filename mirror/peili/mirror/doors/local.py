"""The local door answers requests of this host's runtime: it sends content from the store, or relays it from peers.

If neither has the content, it answers 404, and the runtime goes upstream. A runtime that would not do that for a part
of an image gets a manifest only if the whole image is available (whole_images.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn, TypeVar

from starlette.types import Scope
from typing_extensions import override

from peili.mirror.content.selected_store import SelectedStore
from peili.mirror.doors.base import Door, requested_descriptor
from peili.mirror.doors.middleware import request_record
from peili.mirror.doors.response import ResponseWriter, range_error
from peili.mirror.doors.stored_content import send_stored
from peili.mirror.doors.whole_images import WholeImages
from peili.mirror.errors import Aborted, AuthorizationRequired, NotFound, Unavailable
from peili.mirror.metrics.counters import FROM_PEER, FROM_STORE
from peili.mirror.metrics.requests import RequestRecord
from peili.mirror.oci.ranges import Unsatisfiable
from peili.mirror.oci.references import OCI_INDEX, OCTET_STREAM, Descriptor, Digest
from peili.mirror.oci.requests import NAME_UNKNOWN, UNAUTHORIZED, Endpoint, HTTPError, Requester, Target, parse_query
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.checks import answer
from peili.mirror.plugins.interfaces import Context
from peili.mirror.plugins.resolver import Listed, Resolution, Resolver
from peili.mirror.relay.relay import FetchesInVain, Relay
from peili.mirror.relay.transfer import Transfer
from peili.mirror.rights.gate import Gate
from peili.mirror.upstream.exchanges import USER_AGENT

_T = TypeVar("_T")


class LocalDoor(Door):
    """The door for this host's runtime.

    Args:
        context: See `Door`.
        default_registry: See `Door`.
        resolver: Resolves tags.
        relay: Fetches content that the store does not have.
        gate: Decides who may have what; None if everybody may have everything.
    """

    def __init__(
        self,
        context: Context,
        default_registry: str | None,
        resolver: Resolver,
        relay: Relay,
        gate: Gate | None = None,
    ) -> None:
        super().__init__(context, default_registry)
        self._gate = gate
        self._resolver = resolver
        self._relay = relay
        self._whole_images = WholeImages(context, relay, gate)
        self._selected = context.store if isinstance(context.store, SelectedStore) else None

    @override
    def note_excluded(self, target: Target) -> None:
        if self._selected is not None and target.digest is not None:
            self._selected.note_excluded_request(target.digest)

    @override
    async def send_content(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        digest = target.digest or await self._resolve(target, response)
        target = replace(target, digest=digest, tag=None)  # peers are asked for the digest, not for the tag
        record = request_record(scope)
        record.source, record.digest = FROM_STORE, digest
        await self._require_selected(digest)
        uses_store, authorization = True, response.header(b"authorization")
        if self._gate is not None:
            if _is_from_peili(response):
                raise NotFound("a peili asks this door as if it were a registry")
            permit = await self._gate.check(target, digest, authorization)
            target, uses_store = replace(target, is_checked=permit.is_checked), permit.uses_store
        if target.is_registry_in_path and target.endpoint is Endpoint.MANIFEST:
            await self._whole_images.require(target, digest, authorization)
        if uses_store and await self._send_from_store(target, digest, response):
            self.context.log.debug("%s %s: sent from the store, which has it whole", target.endpoint.value, target.name)
        else:
            record.source = FROM_PEER
            try:
                await self._send_from_peers(target, digest, response, record)
            except FetchesInVain as error:
                await self._cut_off(digest, response, error)

    async def _require_selected(self, digest: Digest) -> None:
        """Raise NotFound for content that this host knows only through excluded images, or if that is not known."""
        if self._selected is None:
            return
        is_excluded = partial(self._selected.is_excluded, digest)
        try:
            if not await call(is_excluded, self.context, "the store", about=digest, allowed=(Unavailable,)):
                return
        except Unavailable as error:
            raise NotFound(f"whether this mirror is for {digest} is not known: {error}") from error
        raise NotFound(f"this mirror is not for {digest}")

    @override
    async def list_tags(self, response: ResponseWriter, target: Target, stored: Collection[str]) -> Collection[str]:
        """Return the tags that the resolver answers. The others are those of the registry, which has its own list."""
        if target.registry is None:
            return ()
        if self.context.covers(target.registry, target.repository):
            stored = ()  # only a resolver that asks the registry knows who may have the list
        find = partial(
            self._resolver.tags_for, target.registry, target.repository, stored, self._requester(target, response)
        )
        listing = await self._ask_resolver("tags_for", find, Listed, target, response)
        if listing is None:
            return ()
        _warn(response, listing.warning)
        return listing.items

    @override
    async def send_referrers(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        """Send what refers to a digest as an index (OCI distribution spec, "Listing Referrers")."""
        if target.registry is None or target.digest is None:
            raise HTTPError(404, NAME_UNKNOWN, f"the registry of {target.name} is unknown; name it with ?ns=")
        digest, requester = target.digest, self._requester(target, response)
        find = partial(self._resolver.referrers_for, target.registry, target.repository, digest, requester)
        listing = await self._ask_resolver("referrers_for", find, Listed, target, response)
        if listing is None:
            raise HTTPError(404, NAME_UNKNOWN, f"the referrers of {target.name} are known upstream")
        _warn(response, listing.warning)
        headers = {"Content-Type": OCI_INDEX}
        manifests = list(listing.items)
        if (wanted := parse_query(scope).get("artifactType")) is not None:
            manifests = [each for each in manifests if each.get("artifactType") == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        await response.json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}, headers)

    def _requester(self, target: Target, response: ResponseWriter) -> Requester:
        """Return who sent the request that `response` answers. Raises HTTPError 403 for an unwanted password."""
        authorization = response.header(b"authorization")
        if self._gate is not None:
            self._gate.check_scheme(target, authorization)
        return Requester(authorization)

    async def _ask_resolver(
        self,
        method: str,
        ask: Callable[[], Awaitable[_T | None]],
        kind: type[Any],
        target: Target,
        response: ResponseWriter,
    ) -> _T | None:
        """Return what the resolver answers, a `kind`; None if it can't.

        Raises HTTPError 401 if the registry demands rights.
        """
        if _is_from_peili(response):
            text = "%s: a peili asks this door as if it were a registry; leave this door out of [upstream]"
            self.context.log.warning(text, target.name)
            return None
        allowed = (NotFound, Unavailable, AuthorizationRequired)
        try:
            return await call(
                lambda: answer(ask(), kind, f"{type(self._resolver).__name__}.{method}", optional=True),
                self.context,
                "the resolver",
                about=target.name,
                allowed=allowed,
            )
        except AuthorizationRequired as error:
            if self._gate is not None:
                self._gate.check_scheme(target, error.challenge)
            raise HTTPError(401, UNAUTHORIZED, str(error), {"WWW-Authenticate": error.challenge}) from error
        except Unavailable as error:
            self.context.log.debug("%s: the resolver can't answer: %s", target.name, error)
            return None

    async def _resolve(self, target: Target, response: ResponseWriter) -> Digest:
        reference, authorization = self.reference(target), response.header(b"authorization")
        gate = None if _is_from_peili(response) else self._gate
        if gate is not None:
            await gate.check_tag(target, reference.tag, authorization)
        resolve = partial(self._resolver.resolve_for, reference, self._requester(target, response))
        unknown = NotFound(f"{target.name} is resolved upstream")
        try:
            resolution = await self._ask_resolver("resolve_for", resolve, Resolution, target, response)
        except NotFound as error:
            resolution, unknown = None, error
        if resolution is None:
            if gate is not None:
                await gate.check_tag(target, reference.tag, authorization, is_unknown=True)
            raise unknown
        _warn(response, resolution.warning)
        digest = resolution.descriptor.digest
        if gate is not None and resolution.is_confirmed:
            gate.note_confirmed(target, digest, authorization)
        return digest

    async def _send_from_store(self, target: Target, digest: Digest, response: ResponseWriter) -> bool:
        """Send the content if the store has it whole. Return whether it has. A store that fails counts as empty.

        Content in flight is not sent, because this request may be the one that fills that ingest. It would wait for
        itself.
        """
        describe = partial(self.context.store.describe, digest)
        try:
            descriptor = await call(describe, self.context, "the store", about=digest, allowed=(NotFound, Unavailable))
            descriptor = requested_descriptor(target, descriptor)
            if response.is_head:
                await response.send_head(descriptor)
            else:
                await send_stored(response, self.opener, descriptor)
        except (NotFound, Unavailable):
            if response.has_started:
                raise
            return False
        return True

    async def _send_from_peers(
        self, target: Target, digest: Digest, response: ResponseWriter, record: RequestRecord
    ) -> None:
        """Relay the content from peers.

        A manifest is relayed whole and verified in memory, so its range is cut out here. Of a blob, only the range is
        relayed. A request without a body needs only the size and the media type.
        """
        is_manifest, is_bodiless = target.endpoint is Endpoint.MANIFEST, response.is_bodiless(digest)
        wanted = None if is_manifest or is_bodiless else response.range(digest)
        async with self._relay.open_transfer(digest, target, wanted=wanted, is_manifest=is_manifest) as transfer:
            record.senders = transfer.senders
            if is_bodiless:
                # A peer is asked even if the response is 304: If-None-Match is evaluated only if the response without
                # it would be 200 (RFC 9110, 13.2.1).
                await response.send_head(requested_descriptor(target, await transfer.describe()))
                return
            try:
                await self._send_transfer(target, digest, response, transfer)
            finally:
                record.is_wrong = transfer.has_sent_wrong_bytes

    async def _cut_off(self, digest: Digest, response: ResponseWriter, error: FetchesInVain) -> NoReturn:
        """Break a response off before its first byte. After a few of them, the runtime gives its pull up at once."""
        descriptor = Descriptor(OCTET_STREAM, digest, error.span.size)
        await response.start(descriptor, error.span, is_partial=True)
        raise Aborted(str(error)) from error

    async def _send_transfer(
        self, target: Target, digest: Digest, response: ResponseWriter, transfer: Transfer
    ) -> None:
        """Send the body of a transfer. No status is sent before its first bytes have arrived."""
        try:
            span = await transfer.begin()
        except Unsatisfiable as error:
            raise range_error(error) from error
        try:
            descriptor = requested_descriptor(target, Descriptor(transfer.media_type, digest, span.size))
            if target.endpoint is Endpoint.MANIFEST:
                if self._gate is not None and transfer.data is not None:
                    self._gate.manifests.note(digest, transfer.data)
                span = response.span(digest, span.size)
                transfer.trim_to(span)
        except (NotFound, HTTPError):
            transfer.complete()
            raise
        # The status is 200 for the whole content, even if the request is for "bytes=0-". After 206, some runtimes fetch
        # parallel parts, which cannot be verified. After 200, they read one stream, which can be. Some do so only if
        # the response has no length, too.
        has_length = not transfer.takes_one_stream
        await response.start(descriptor, span, is_partial=not span.is_whole, has_length=has_length)
        with self._gate.relaying(digest) if self._gate is not None else nullcontext():
            await transfer.send_to(response)
        await response.end()


def _is_from_peili(response: ResponseWriter) -> bool:
    """Return whether the request is a question of a peili to a registry: it takes this door for one."""
    return response.header(b"user-agent") == USER_AGENT


def _warn(response: ResponseWriter, warning: str | None) -> None:
    """Let the response have a Warning header."""
    if warning is not None:
        response.more_headers.append((b"warning", warning.encode("latin-1")))
