"""The part of Kubernetes' CRI API that tests call: a pull, as the kubelet asks containerd for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from tests.lab.processes import DEADLINE, CommandFailed

from peili.stores.containerd._grpc import aio

_OPTIONS = (
    ("grpc.default_authority", "localhost"),  # older grpcio sends the socket's path, which Go's servers refuse
    ("grpc.enable_http_proxy", 0),
)
_SERVICE = "/runtime.v1.ImageService"


def pull(socket: Path, name: str, *, timeout: float = DEADLINE) -> str:
    """Have the containerd at `socket` pull the image called `name`; the image's id. Blocks.

    Raises CommandFailed with containerd's words.
    """
    # PullImageRequest's field 1 is an ImageSpec, whose field 1 is the name; PullImageResponse's is the image. On the
    # transport, that is how protobuf's own wrappers look.
    request = BytesValue(value=StringValue(value=name).SerializeToString()).SerializeToString()
    return StringValue.FromString(asyncio.run(_answer(socket, "PullImage", request, timeout))).value


def is_ready(socket: Path) -> bool:
    """Whether the CRI plug-in of the containerd at `socket` does what it is asked. Blocks."""
    try:
        asyncio.run(_answer(socket, "ListImages", b"", DEADLINE))
    except CommandFailed:
        return False
    return True


async def _answer(socket: Path, method: str, request: bytes, timeout: float) -> bytes:
    async with aio.insecure_channel(f"unix:{socket}", options=_OPTIONS) as channel:
        call = channel.unary_unary(f"{_SERVICE}/{method}", bytes, bytes)
        try:
            answer: bytes = await call(request, timeout=timeout)
        except aio.AioRpcError as error:
            raise CommandFailed(f"CRI's {method} at {socket}: {error.code().name}: {error.details()}") from error
    return answer
