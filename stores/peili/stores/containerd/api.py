"""containerd's gRPC API: one typed method for each call that the store and the doctor need.

Errors of gRPC become `NotFound` and `StoreUnavailable`, with a message that says what to check.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from google.protobuf.wrappers_pb2 import StringValue

from peili.mirror import NotFound, StoreUnavailable
from peili.stores.containerd.guarded_grpc import StatusCode, aio
from peili.stores.containerd.protos import api_pb2 as pb

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

CALL_TIMEOUT = 5.0
"""The timeout of a call, in seconds."""
LIST_TIMEOUT = 15.0
"""The timeout of a call that lists everything, in seconds. Its response may have many messages."""

_OPTIONS = (
    ("grpc.default_authority", "localhost"),  # older grpcio sends the socket's path, which Go servers refuse
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # so that two stores in one process share no connection
    ("grpc.max_receive_message_length", 64 << 20),  # the list of all images is one message
    # After a restart of containerd, the connection is back within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_CLOSE_GRACE = 1.0  # seconds that running calls get to end when the connection is closed
_CANCEL_SECONDS = 0.1  # ten times what gRPC needs to end cancelled unary calls
_STREAM_SECONDS = 0.2  # the longest wait for gRPC's tasks of cancelled streams


class ContainerdApi:
    """A connection to containerd, for use on the loop on which it was created. Reconnects by itself.

    Use it with ``async with``. Every method raises StoreUnavailable if containerd can't be reached or does not answer
    in time, and NotFound if containerd answers so. Every `namespace` is the name of a containerd namespace.

    Args:
        socket: The path of containerd's unix socket.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._has_cancelled_stream = False
        self._calls: set[asyncio.Future[Any]] = set()  # unary calls without an answer
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
        # The response is google.protobuf.Empty: it has no field to read.
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
        # The version is the first field of the response, like the string in a StringValue.
        self._version = channel.unary_unary(
            "/containerd.services.version.v1.Version/Version", bytes, StringValue.FromString
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close(_CLOSE_GRACE)
        has_open_call = any(each.cancelled() or not each.done() for each in self._calls)
        if self._has_cancelled_stream or has_open_call:
            await _wait_for_cancelled_calls(has_open_call=has_open_call)

    async def info(self, namespace: str, digest: str) -> pb.LabelledInfo:
        """Return what containerd knows about a complete blob."""
        request = pb.InfoRequest(digest=digest)
        answer = await self._answer(self._info(request, timeout=CALL_TIMEOUT, metadata=_in_namespace(namespace)))
        return answer.info

    async def blobs(self, namespace: str) -> AsyncGenerator[pb.Info, None]:
        """Yield every complete blob of the namespace."""
        request = pb.ListContentRequest()
        call = self._list_content(request, timeout=LIST_TIMEOUT, metadata=_in_namespace(namespace))
        async for message in self._messages(call):
            for info in message.info:
                yield info

    async def read(self, namespace: str, digest: str, offset: int, size: int) -> AsyncGenerator[bytes, None]:
        """Yield `size` bytes of a blob from `offset` on, in pieces. A `size` of 0 reads to the end."""
        request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
        call = self._read(request, timeout=CALL_TIMEOUT, metadata=_in_namespace(namespace))
        async for message in self._messages(call):
            yield message.data

    async def ingests(self, namespace: str) -> list[str]:
        """Return the refs of all ingests, the blobs that containerd is still writing."""
        request = pb.ListStatusesRequest()
        answer = await self._answer(
            self._list_statuses(request, timeout=CALL_TIMEOUT, metadata=_in_namespace(namespace))
        )
        return [status.ref for status in answer.statuses]

    async def abort(self, namespace: str, ref: str) -> None:
        """Remove the ingest `ref`."""
        request = pb.AbortRequest(ref=ref)
        await self._answer(self._abort(request, timeout=CALL_TIMEOUT, metadata=_in_namespace(namespace)))

    async def image(self, namespace: str, name: str) -> pb.Image:
        """Return the image called `name`."""
        request = pb.GetImageRequest(name=name)
        answer = await self._answer(self._get_image(request, timeout=CALL_TIMEOUT, metadata=_in_namespace(namespace)))
        return answer.image

    async def images(self, namespace: str) -> list[pb.Image]:
        """Return every image of the namespace."""
        request = pb.ListImagesRequest()
        answer = await self._answer(self._list_images(request, timeout=LIST_TIMEOUT, metadata=_in_namespace(namespace)))
        return list(answer.images)

    async def events(self, *filters: str) -> AsyncGenerator[pb.Envelope, None]:
        """Yield the events of all namespaces that match any of `filters`, from now on. Has no end and no timeout."""
        async for envelope in self._messages(self._subscribe(pb.SubscribeRequest(filters=filters))):
            yield envelope

    async def content_root(self) -> Path | None:
        """Return the directory of the content store, as containerd sees it; None if containerd does not tell."""
        plugins = await self.plugins("type==io.containerd.content.v1")
        roots = [plugin.exports.get("root") for plugin in plugins if plugin.id == "content"]
        return Path(roots[0]) if roots and roots[0] else None

    async def plugins(self, *filters: str) -> list[pb.Plugin]:
        """Return containerd's plug-ins that match any of `filters`. One that did not load has an error."""
        answer = await self._answer(self._plugins(pb.PluginsRequest(filters=filters), timeout=CALL_TIMEOUT))
        return list(answer.plugins)

    async def version(self) -> str:
        """Return containerd's version, such as ``1.6.20~ds1`` or ``v2.1.0``."""
        answer = await self._answer(self._version(b"", timeout=CALL_TIMEOUT))
        return answer.value

    async def namespaces(self) -> list[str]:
        """Return the names of all namespaces, sorted."""
        answer = await self._answer(self._list_namespaces(pb.ListNamespacesRequest(), timeout=CALL_TIMEOUT))
        return sorted(namespace.name for namespace in answer.namespaces)

    async def _answer(self, call: Awaitable[_Response]) -> _Response:
        # Shielded: gRPC does not tell when a cancelled unary call has ended (see `_wait_for_cancelled_calls`). A call
        # that nobody waits for ends by itself, at its timeout at the latest.
        answer = asyncio.ensure_future(call)
        self._calls.add(answer)
        answer.add_done_callback(self._forget_call)
        with map_grpc_errors(self._socket):
            return await asyncio.shield(answer)

    async def _messages(self, call: aio.UnaryStreamCall[_Request, _Response]) -> AsyncGenerator[_Response, None]:
        try:
            with map_grpc_errors(self._socket):
                async for message in call:
                    yield message
        finally:
            call.cancel()
            self._has_cancelled_stream |= call.cancelled()

    def _forget_call(self, answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled():
            answer.exception()  # retrieved, because nobody may wait for the call any more
            self._calls.discard(answer)


def _in_namespace(namespace: str) -> tuple[tuple[str, str]]:
    return (("containerd-namespace", namespace),)


async def _wait_for_cancelled_calls(*, has_open_call: bool) -> None:
    """Wait until gRPC has processed the end of cancelled calls.

    gRPC reports the end of a call through one queue for the whole process. A report that arrives after this loop is
    closed would raise an error in the next loop that uses gRPC.

    For each stream, gRPC has a task that ends then. The task does not tell which channel it belongs to, so this wait
    has a limit. For a unary call, nothing shows when it has ended, so this waits a fixed time. Unary calls are only
    cancelled if closing the channel interrupts them (`has_open_call`).
    """
    if has_open_call:
        await asyncio.sleep(_CANCEL_SECONDS)
    tasks = [
        each for each in asyncio.all_tasks() if getattr(each.get_coro(), "__qualname__", "").startswith("_AioCall.")
    ]
    if tasks:
        await asyncio.wait(tasks, timeout=_STREAM_SECONDS)


@contextmanager
def map_grpc_errors(socket: Path) -> Generator[None, None, None]:
    """Turn the errors of one call to the containerd behind `socket` into NotFound and StoreUnavailable."""
    try:
        yield
    except aio.AioRpcError as error:
        match error.code():
            case StatusCode.NOT_FOUND:
                raise NotFound(error.details() or "not found") from error
            case StatusCode.UNAVAILABLE:
                raise StoreUnavailable(why_unreachable(socket)) from error
            case StatusCode.DEADLINE_EXCEEDED:
                raise StoreUnavailable(f"containerd on {socket} did not answer in time") from error
            case code:
                raise StoreUnavailable(f"containerd on {socket} answered {code.name}: {error.details()}") from error
    except aio.BaseError as error:  # the channel was closed before the call
        raise StoreUnavailable(f"the connection to {socket} is closed") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # The channel was closed, which cancels its calls. The task that waits for the call was not cancelled.
        raise StoreUnavailable(f"the connection to {socket} was closed") from error


def why_unreachable(socket: Path) -> str:
    """Return one line that says why nothing answers on `socket`, judged from its file."""
    try:
        mode = socket.stat().st_mode
    except PermissionError:
        return f"no permission to reach {socket}; {_as_root('give this user access to its directory')}"
    except OSError:
        return f"there is no socket {socket}: containerd does not run, or has another address"
    if not stat.S_ISSOCK(mode):
        return f"{socket} is not a socket; use the one that containerd listens on"
    if not os.access(socket, os.R_OK | os.W_OK):
        return f"no permission on {socket}; {_as_root('give this user access to it')}"
    return f"containerd does not answer on {socket}"


def _as_root(otherwise: str) -> str:
    """Return how to get a permission that this process lacks. Root may lack it without its capabilities."""
    if os.geteuid() == 0:
        return "this process is root, but has no CAP_DAC_OVERRIDE, or a security module refuses it"
    return f"run as root, or {otherwise}"
