"""What the local door and the peer door share: they check and parse a request, and turn errors into responses."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator
from dataclasses import replace
from functools import partial

from starlette.types import Receive, Scope, Send

from peili.mirror.doors.middleware import request_record
from peili.mirror.doors.open_content import ContentOpener
from peili.mirror.doors.request_scope import RequestScope, wait_closed
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.doors.tags import send_tags
from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.metrics.requests import RequestRecord
from peili.mirror.oci.references import OCTET_STREAM, Descriptor, Reference, is_manifest
from peili.mirror.oci.requests import (
    BLOB_UNKNOWN,
    LIMIT_OF_STATUS,
    MANIFEST_UNKNOWN,
    NAME_UNKNOWN,
    TOOMANYREQUESTS,
    UNSUPPORTED,
    Endpoint,
    HTTPError,
    Target,
    api_path,
    check_request,
    parse_query,
    parse_target,
)
from peili.mirror.plugins.interfaces import Context
from peili.mirror.server.socket_writer import is_client_gone
from peili.mirror.support.tasks import is_own_failure

_NO_NAMESPACE = frozenset({None, "", "*"})
"""Values that clients send as the registry if they name none."""


class Door(ABC):
    """An ASGI app for the pull part of the OCI distribution spec. A subclass says where content comes from.

    If an error occurs after the status was sent, the response is left unfinished. The server then closes the
    connection, and the client sees that the response is cut off.

    Args:
        context: The context of the mirror, with the log of this door.
        default_registry: The registry of requests that name none.

    Attributes:
        tells_reasons: Whether responses have the messages of plug-ins, which may contain paths of this host.
    """

    tells_reasons = True

    def __init__(self, context: Context, default_registry: str | None) -> None:
        self.context = context
        self.opener = ContentOpener(context)
        self._default_registry = default_registry
        self._scopes: set[RequestScope] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        response = ResponseWriter(scope, send, self.context.limits.reader_timeout)
        try:
            try:
                target = self._parse(scope, response)
                _describe(target, request_record(scope))
                async with RequestScope(receive, self._scopes) as request:
                    with self._total_time(request, target):
                        await self._respond(target, response, scope)
            except HTTPError as error:
                if error.status in LIMIT_OF_STATUS:
                    self.context.limited(LIMIT_OF_STATUS[error.status])
                await response.error(error)
        except OSError as error:
            # Sending failed, perhaps that of an error response: the client has disconnected or reads nothing, or this
            # host cannot send.
            if not is_client_gone(error):
                self.context.log.exception("%s: response cut off", scope["path"])
                return
            if isinstance(error, TimeoutError):
                self.context.limited("reader_timeout")
            self.context.log.debug("client disconnected: %s", scope["path"])

    @contextlib.contextmanager
    def _total_time(self, request: RequestScope, target: Target) -> Generator[None]:
        """Cut the response off after ``limits.response_timeout`` seconds."""
        seconds = self.context.limits.response_timeout

        def end() -> None:
            self.context.limited("response_timeout")
            self.context.log.warning("%s: cut off, because the response takes longer than %g s", target.name, seconds)
            request.cancel()

        timer = asyncio.get_running_loop().call_later(seconds, end)
        try:
            yield
        finally:
            timer.cancel()

    async def drain(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for the responses in progress to end, then cut them off.

        New requests are still answered.
        """
        await wait_closed(self._scopes, timeout)
        if late := set(self._scopes):
            self.context.limited("drain_timeout")
            for each in late:
                each.cancel()
            await wait_closed(late, timeout)
        await self.opener.drain(timeout)

    def _parse(self, scope: Scope, response: ResponseWriter) -> Target:
        """Return what the request asks for. Raises HTTPError if it is malformed, or not for this mirror."""
        check_request(scope, self.context.limits)
        path = api_path(scope["path"], scope.get("root_path", ""))
        namespaces = (parse_query(scope).get("ns"), response.header(b"oci-namespace"))
        ns = next((each for each in namespaces if each not in _NO_NAMESPACE), None)
        target = parse_target(path, ns=ns, default_registry=self._default_registry)
        is_selected = target.endpoint is Endpoint.BASE or self.context.selection.allows(
            target.registry, target.repository, target.tag
        )
        if not is_selected:
            self.note_excluded(target)
            self.context.log.debug("%s %s: not sent: excluded by the configuration", target.endpoint.value, target.name)
            raise HTTPError(404, NAME_UNKNOWN, f"this mirror is not for {target.name}")
        return target

    def note_excluded(self, target: Target) -> None:  # noqa: B027 - only the local door takes note
        """Take note of a request for an image that the mirror is not for. It is refused."""

    async def _respond(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        """Send the response. Translate errors to HTTPError; once the response has started, log them instead."""
        try:
            await self._dispatch(target, response, scope)
        except (NotFound, Aborted, Unavailable) as error:
            if not response.has_started:
                self.context.log.debug("%s %s: not sent: %s", target.endpoint.value, target.name, error)
                raise self._http_error(target, error) from error
            self.context.log.warning("%s: response cut off: %s", target.name, error)
        except HTTPError:
            raise  # a decision of the door, not an error of a plug-in
        except BaseException as error:
            if not is_own_failure(error):
                raise
            if response.has_started and isinstance(error, OSError):
                raise  # usually from sending: the client has disconnected
            self.context.log.exception("%s: a plug-in failed", target.name)
            if not response.has_started:
                raise self._http_error(target, NotFound()) from error

    async def _dispatch(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        match target.endpoint:
            case Endpoint.BASE:
                await response.json({})
            case Endpoint.TAGS:
                await self.require_list(target, scope)
                await send_tags(target, response, scope, self.context, partial(self.list_tags, response))
            case Endpoint.REFERRERS:
                await self.send_referrers(target, response, scope)
            case Endpoint.MANIFEST | Endpoint.BLOB:
                await self.send_content(target, response, scope)

    def _http_error(self, target: Target, error: Exception) -> HTTPError:
        """Return the error response for an error of a plug-in or of the relay: 503 for `Unavailable`, else 404."""
        reason = str(error) if self.tells_reasons else ""
        if isinstance(error, Unavailable):
            return HTTPError(503, TOOMANYREQUESTS, reason or "this host can't answer now", {"Retry-After": "1"})
        code = MANIFEST_UNKNOWN if target.endpoint is Endpoint.MANIFEST else BLOB_UNKNOWN
        return HTTPError(404, code, reason or f"{target.name} is not available")

    @abstractmethod
    async def send_content(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        """Send a manifest or a blob.

        Args:
            target: What the request asks for.
            response: Writes the response.
            scope: The ASGI scope of the request.

        Raises:
            HTTPError: The request is refused.
            NotFound: This door does not have the content.
            Aborted: The content ended too early. The response is cut off.
            Unavailable: A plug-in or a peer does not answer.
        """

    async def require_list(self, target: Target, scope: Scope) -> None:  # noqa: B027 - the local door asks its resolver
        """Return if the client may have the tags of a repository. Raises NotFound if not."""

    async def send_referrers(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        """Send what refers to a digest. Arguments are those of `send_content`. Only the local door knows that.

        Raises:
            HTTPError: It is not known.
        """
        raise HTTPError(404, UNSUPPORTED, "the referrers are not known here")

    async def list_tags(self, response: ResponseWriter, target: Target, stored: Collection[str]) -> Collection[str]:
        """Return the tags of a repository that this door answers. `stored` are those that the store can serve.

        Raises:
            HTTPError: The request is refused.
            Unavailable: A plug-in does not answer.
        """
        return stored

    def reference(self, target: Target) -> Reference:
        """Return the full reference of a target with a tag.

        Raises:
            NotFound: The registry is unknown, or the reference is malformed.
        """
        if target.registry is None or target.tag is None:
            raise NotFound(f"the registry of {target.name} is unknown; name it with ?ns=")
        try:
            return Reference(target.registry, target.repository, target.tag)
        except ValueError as error:
            raise NotFound(str(error)) from error


def _describe(target: Target, record: RequestRecord) -> None:
    """Note in `record` what the request asks for."""
    record.endpoint = target.endpoint.value
    if target.repository:
        record.repository = f"{target.registry}/{target.repository}" if target.registry else target.repository
        record.digest, record.tag = target.digest, target.tag or ""
        record.is_manifest = target.endpoint is Endpoint.MANIFEST


def requested_descriptor(target: Target, descriptor: Descriptor) -> Descriptor:
    """Return `descriptor` with the media type of the response to a request for `target`.

    A media type that is not a known type of manifests is kept only if the request is for a manifest, because other JSON
    documents state a media type, too.

    Raises:
        NotFound: The request is for a manifest, and the content is not one.
    """
    if descriptor.media_type == OCTET_STREAM:
        if target.endpoint is Endpoint.MANIFEST:
            raise NotFound(f"{target.name} is not a manifest")
        return descriptor
    keeps_type = target.endpoint is Endpoint.MANIFEST or is_manifest(descriptor.media_type)
    return descriptor if keeps_type else replace(descriptor, media_type=OCTET_STREAM)
