"""containerd's API as typed calls: one method for each that we need. What they are used for is said elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from google.protobuf.wrappers_pb2 import StringValue

from peili.mirror.limits import MIB
from peili.stores.containerd._grpc import aio
from peili.stores.containerd.failures import translated
from peili.stores.containerd.protos import api_pb2 as pb

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

CALL_TIMEOUT = 5.0
"""Seconds that a call may take, to its end."""
LIST_TIMEOUT = 15.0
"""Seconds that a listing, which may come in many messages, may take."""

_OPTIONS = (
    ("grpc.default_authority", "localhost"),  # older grpcio sends the socket's path, which Go's servers refuse
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # two stores in one process share no connection
    ("grpc.max_receive_message_length", 64 * MIB),  # a list of images is one message
    # A containerd that is back is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_MOMENT = 0.1  # seconds
_GRACE = 1.0  # seconds that calls under way are given when the connection is closed


def _in_namespace(namespace: str) -> tuple[tuple[str, str]]:
    return (("containerd-namespace", namespace),)


class Api:
    """A connection to the containerd behind `socket`, made anew by itself whenever it breaks.

    To be made on the loop that uses it, and closed by ``async with``. Every method raises StoreUnavailable when
    containerd can't be reached or does not answer in time, and NotFound where containerd says so.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._cut = False  # whether a stream was cancelled
        self._asked: set[asyncio.Future[Any]] = set()  # what has no answer yet
        self._channel = channel = aio.insecure_channel(f"unix:{quote(str(socket))}", options=_OPTIONS)
        content, images = "/containerd.services.content.v1.Content", "/containerd.services.images.v1.Images"
        self._info = channel.unary_unary(
            f"{content}/Info", pb.InfoRequest.SerializeToString, pb.InfoResponse.FromString
        )
        self._list_content = channel.unary_stream(
            f"{content}/List", pb.ListContentRequest.SerializeToString, pb.ListContentResponse.FromString
        )
        self._read = channel.unary_stream(
            f"{content}/Read", pb.ReadContentRequest.SerializeToString, pb.ReadContentResponse.FromString
        )
        self._list_statuses = channel.unary_unary(
            f"{content}/ListStatuses", pb.ListStatusesRequest.SerializeToString, pb.ListStatusesResponse.FromString
        )
        # It answers with google.protobuf.Empty, which has nothing to read.
        self._abort = channel.unary_unary(f"{content}/Abort", pb.AbortRequest.SerializeToString, bytes)
        self._get_image = channel.unary_unary(
            f"{images}/Get", pb.GetImageRequest.SerializeToString, pb.GetImageResponse.FromString
        )
        self._list_images = channel.unary_unary(
            f"{images}/List", pb.ListImagesRequest.SerializeToString, pb.ListImagesResponse.FromString
        )
        self._subscribe = channel.unary_stream(
            "/containerd.services.events.v1.Events/Subscribe",
            pb.SubscribeRequest.SerializeToString,
            pb.Envelope.FromString,
        )
        self._plugins = channel.unary_unary(
            "/containerd.services.introspection.v1.Introspection/Plugins",
            pb.PluginsRequest.SerializeToString,
            pb.PluginsResponse.FromString,
        )
        self._list_namespaces = channel.unary_unary(
            "/containerd.services.namespaces.v1.Namespaces/List",
            pb.ListNamespacesRequest.SerializeToString,
            pb.ListNamespacesResponse.FromString,
        )
        # Its first field is containerd's version, as StringValue's is the string.
        self._version = channel.unary_unary(
            "/containerd.services.version.v1.Version/Version", bytes, StringValue.FromString
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close(_GRACE)
        unheard = any(each.cancelled() or not each.done() for each in self._asked)
        if self._cut or unheard:
            await _settled(unheard=unheard)

    async def info(self, namespace: str, digest: str) -> pb.Info:
        """What is known of a whole blob."""
        request = pb.InfoRequest(digest=digest)
        answer = await self._answer(self._info(request, timeout=CALL_TIMEOUT, metadata=_in_namespace(namespace)))
        return answer.info

    async def blobs(self, namespace: str) -> AsyncGenerator[pb.Info, None]:
        """Every whole blob of the namespace."""
        request = pb.ListContentRequest()
        call = self._list_content(request, timeout=LIST_TIMEOUT, metadata=_in_namespace(namespace))
        async for message in self._messages(call):
            for info in message.info:
                yield info

    async def read(self, namespace: str, digest: str, offset: int, size: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from `offset` on, `size` of them, in pieces."""
        request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
        call = self._read(request, timeout=CALL_TIMEOUT, metadata=_in_namespace(namespace))
        async for message in self._messages(call):
            yield message.data

    async def ingests(self, namespace: str) -> list[str]:
        """The refs of all unfinished blobs."""
        request = pb.ListStatusesRequest()
        answer = await self._answer(
            self._list_statuses(request, timeout=CALL_TIMEOUT, metadata=_in_namespace(namespace))
        )
        return [status.ref for status in answer.statuses]

    async def abort(self, namespace: str, ref: str) -> None:
        """Remove an unfinished blob."""
        request = pb.AbortRequest(ref=ref)
        await self._answer(self._abort(request, timeout=CALL_TIMEOUT, metadata=_in_namespace(namespace)))

    async def image(self, namespace: str, name: str) -> pb.Image:
        """The image of that name."""
        request = pb.GetImageRequest(name=name)
        answer = await self._answer(self._get_image(request, timeout=CALL_TIMEOUT, metadata=_in_namespace(namespace)))
        return answer.image

    async def images(self, namespace: str) -> list[pb.Image]:
        """Every image of the namespace."""
        request = pb.ListImagesRequest()
        answer = await self._answer(self._list_images(request, timeout=LIST_TIMEOUT, metadata=_in_namespace(namespace)))
        return list(answer.images)

    async def events(self, *filters: str) -> AsyncGenerator[pb.Envelope, None]:
        """What happens from now on, in all namespaces. Has no end and no time limit."""
        async for envelope in self._messages(self._subscribe(pb.SubscribeRequest(filters=filters))):
            yield envelope

    async def content_root(self) -> Path | None:
        """The directory of the content store, as containerd sees it."""
        plugins = await self.plugins("type==io.containerd.content.v1")
        roots = [plugin.exports.get("root") for plugin in plugins if plugin.id == "content"]
        return Path(roots[0]) if roots and roots[0] else None

    async def plugins(self, *filters: str) -> list[pb.Plugin]:
        """The plug-ins that any of `filters` matches; with an error, those that did not load."""
        answer = await self._answer(self._plugins(pb.PluginsRequest(filters=filters), timeout=CALL_TIMEOUT))
        return list(answer.plugins)

    async def version(self) -> str:
        """containerd's version, as ``1.6.20~ds1`` or ``v2.1.0``."""
        answer = await self._answer(self._version(b"", timeout=CALL_TIMEOUT))
        return answer.value

    async def namespaces(self) -> list[str]:
        """Every namespace's name, sorted."""
        answer = await self._answer(self._list_namespaces(pb.ListNamespacesRequest(), timeout=CALL_TIMEOUT))
        return sorted(namespace.name for namespace in answer.namespaces)

    async def _answer(self, call: Awaitable[_Response]) -> _Response:
        # RouterRoutes: see `_settled`. A call whose caller is gone ends by itself, at the latest by its timeout.
        answering = asyncio.ensure_future(call)
        self._asked.add(answering)
        answering.add_done_callback(self._heard)
        with translated(self._socket):
            return await asyncio.shield(answering)

    async def _messages(self, call: aio.UnaryStreamCall[_Request, _Response]) -> AsyncGenerator[_Response, None]:
        try:
            with translated(self._socket):
                async for message in call:
                    yield message
        finally:
            call.cancel()
            self._cut |= call.cancelled()

    def _heard(self, answering: asyncio.Future[Any]) -> None:
        """An error that nobody waits for any more is no news."""
        if not answering.cancelled():
            answering.exception()
            self._asked.discard(answering)


async def _settled(*, unheard: bool) -> None:
    """Wait until gRPC has heard the end of calls that were cancelled.

    It delivers that by one queue for the whole process. What is still to come when this loop is closed would be an
    error in whichever loop uses gRPC next. Of streams, gRPC has a task that ends then. It does not tell whose it is:
    hence the bound. Of unary calls, which are cancelled only where closing cut them off (`unheard`), nothing tells
    when it is over: they are given a moment, which is ten times what they need.
    """
    if unheard:
        await asyncio.sleep(_MOMENT)
    tasks = [
        each for each in asyncio.all_tasks() if getattr(each.get_coro(), "__qualname__", "").startswith("_AioCall.")
    ]
    if tasks:
        await asyncio.wait(tasks, timeout=0.2)
