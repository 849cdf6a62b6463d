"""What local and peer door share: what they refuse at once, how errors become answers, and the endpoints that are the
same in both.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar
from urllib.parse import parse_qsl, quote, urlencode

from starlette.types import Receive, Scope, Send

from peili.mirror.doors.opening import ContentOpener
from peili.mirror.doors.request_checks import check_request
from peili.mirror.doors.request_metrics import request_record
from peili.mirror.doors.request_scope import RequestScopes
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.errors import Aborted, NotFound, StoreUnavailable, Unavailable
from peili.mirror.oci.media_types import OCTET_STREAM, is_manifest
from peili.mirror.oci.paths import Endpoint, Target, api_path, parse_target
from peili.mirror.oci.references import Descriptor, Digest, Reference
from peili.mirror.oci.refusal import (
    BLOB_UNKNOWN,
    BOUNDS,
    MANIFEST_UNKNOWN,
    NAME_UNKNOWN,
    TOOMANYREQUESTS,
    UNSUPPORTED,
    HTTPError,
)
from peili.mirror.parts import Parts
from peili.mirror.server.socket_writer import is_client_gone
from peili.mirror.support.deadlines import Deadline

_T = TypeVar("_T")
_DIGITS = 9
"""A number with more of them is above the number of tags that there can be."""
_NO_NAMESPACE = frozenset({None, "", "*"})
"""What clients send where they name no registry."""


class Door(ABC):
    """An ASGI app for the pull part of the OCI distribution spec. Subclasses say where content comes from."""

    def __init__(self, parts: Parts, log: logging.Logger) -> None:
        self.store = parts.store
        self.selection = parts.selection
        self.limits = parts.limits
        self.metrics = parts.metrics
        self.opener = ContentOpener(parts.store, parts.limits, parts.metrics.limited.add, log)
        self.log = log
        self._default_registry = parts.default_registry
        self._visitors = RequestScopes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        response = ResponseWriter(scope, send, self.limits.reader_timeout)
        try:
            try:
                target = self._target(scope, response)
                request_record(scope).endpoint = target.endpoint.value
                async with self._visitors.visit(receive):
                    await self._answer(target, response, scope)
            except HTTPError as refusal:
                if refusal.status in BOUNDS:
                    self.metrics.limited.add(BOUNDS[refusal.status])
                await response.refuse(refusal)
        except OSError as error:
            # The one who asked is gone, or takes nothing, or can't be told. Leaving the answer unfinished makes the
            # server close the connection.
            if not is_client_gone(error):
                self.log.exception("%s: cut off", scope["path"])
                return
            if isinstance(error, TimeoutError):
                self.metrics.limited.add("reader_timeout")
            self.log.debug("client left: %s", scope["path"])

    async def drain(self, timeout: float) -> None:
        """Give the answers under way `timeout` seconds to end, then cut them off. New ones are still begun."""
        if await self._visitors.drain(timeout):
            self.metrics.limited.add("drain_timeout")
        await self.opener.drain(timeout)

    def _target(self, scope: Scope, response: ResponseWriter) -> Target:
        check_request(scope, self.limits)
        path = api_path(scope["path"], scope.get("root_path", ""))
        said = (_query(scope).get("ns"), response.header(b"oci-namespace"))
        ns = next((each for each in said if each not in _NO_NAMESPACE), None)
        target = parse_target(path, ns=ns, default_registry=self._default_registry)
        selected = target.endpoint is Endpoint.BASE or self.selection.allows(
            target.registry, target.repository, target.tag
        )
        if not selected:
            raise HTTPError(404, NAME_UNKNOWN, f"this mirror is not for {target.name}")
        return target

    async def _answer(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        try:
            match target.endpoint:
                case Endpoint.BASE:
                    await response.json({})
                case Endpoint.TAGS:
                    await self._tags(target, response, scope)
                case Endpoint.MANIFEST | Endpoint.BLOB:
                    await self.content(target, response, scope)
        except (NotFound, Aborted, Unavailable) as error:
            if not response.started:
                raise _refusal(target, error) from error
            self.log.warning("%s: cut off: %s", target.name, error)
        except HTTPError:
            raise
        except Exception as error:  # a stranger's plug-in may raise anything, and must not make a pull worse
            if response.started and isinstance(error, OSError):
                raise  # of sending, as a rule: the one who asked is gone
            self.log.exception("%s: a plug-in failed", target.name)
            if not response.started:
                raise _refusal(target, NotFound()) from error

    @abstractmethod
    async def content(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        """Answer with a manifest or a blob. Raises HTTPError, NotFound, Aborted, Unavailable."""

    async def ask_store(self, question: Awaitable[_T]) -> _T:
        """What the store answers. Raises what it does, and StoreUnavailable where it takes too long."""
        bound = Deadline(self.limits.first_byte_timeout)
        try:
            async with bound:
                return await question
        except TimeoutError as error:
            if not bound.expired():
                raise  # its own
            self.metrics.limited.add("first_byte_timeout")
            raise StoreUnavailable("the store does not answer in time") from error

    def reference(self, target: Target) -> Reference:
        """The full reference of a target that has a tag. Raises NotFound where nothing says which registry."""
        if target.registry is None or target.tag is None:
            raise NotFound(f"no registry is named for {target.name}; ?ns= would")
        try:
            return Reference(target.registry, target.repository, target.tag)
        except ValueError as error:
            raise NotFound(str(error)) from error

    async def _tags(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        """OCI distribution spec, "Listing Tags": in lexical order, from behind `last`, at most `n`."""
        found = {
            reference.tag: descriptor.digest
            for reference, descriptor in await self.ask_store(self.store.images())
            if (reference.registry, reference.repository) == (target.registry, target.repository)
            and self.selection.allows(reference.registry, reference.repository, reference.tag)
        }
        here = await self.ask_store(self._here(set(found.values())))
        tags = sorted(tag for tag, digest in found.items() if digest in here)
        if not tags:
            raise HTTPError(404, NAME_UNKNOWN, f"{target.name} is not here")
        query = _query(scope)
        page = _page(tags, query.get("n"), query.get("last"))
        headers: dict[str, str] = {}
        if page and page[-1] != tags[-1]:
            more = urlencode({**query, "last": page[-1]})
            headers["Link"] = f'<{quote(scope["path"])}?{more}>; rel="next"'
        name = api_path(scope["path"], scope.get("root_path", "")).removeprefix("/").removesuffix("/tags/list")
        await response.json({"name": name, "tags": page}, headers)  # as the client wrote it, its registry included

    async def _here(self, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that the store can serve as manifests. Raises StoreUnavailable."""
        here: set[Digest] = set()
        for digest in digests:
            with suppress(NotFound):
                descriptor = await self.store.describe(digest)
                if descriptor.media_type != OCTET_STREAM:
                    here.add(digest)
        return here


def _query(scope: Scope) -> dict[str, str]:
    return dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))


def _page(tags: list[str], n: str | None, last: str | None) -> list[str]:
    rest = [tag for tag in tags if last is None or tag > last]
    if n is None:
        return rest
    if not (n.isascii() and n.isdigit()):
        raise HTTPError(400, UNSUPPORTED, f"n is not a number: {n[:20]!a}")
    digits = n.lstrip("0")
    return rest if len(digits) > _DIGITS else rest[: int(digits or "0")]


def requested_descriptor(target: Target, descriptor: Descriptor) -> Descriptor:
    """`descriptor` as what `target` asks for. Raises NotFound where something else than a manifest is asked for as one.

    A type that is not known counts only where a manifest is asked for: other JSON may name a type of its own as well.
    """
    if descriptor.media_type == OCTET_STREAM:
        if target.endpoint is Endpoint.MANIFEST:
            raise NotFound(f"{target.name} is not a manifest")
        return descriptor
    known = target.endpoint is Endpoint.MANIFEST or is_manifest(descriptor.media_type)
    return descriptor if known else replace(descriptor, media_type=OCTET_STREAM)


def _refusal(target: Target, error: Exception) -> HTTPError:
    if isinstance(error, Unavailable):
        return HTTPError(503, TOOMANYREQUESTS, str(error), {"Retry-After": "1"})
    code = MANIFEST_UNKNOWN if target.endpoint is Endpoint.MANIFEST else BLOB_UNKNOWN
    return HTTPError(404, code, str(error) or f"{target.name} is not here")
