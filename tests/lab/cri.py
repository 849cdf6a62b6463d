"""A client for the part of Kubernetes' CRI API that the tests use: pull an image, as the kubelet does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from tests.lab.processes import DEADLINE, CommandFailed

from peili.stores.containerd.guarded_grpc import aio

_OPTIONS = (
    ("grpc.default_authority", "localhost"),  # older grpcio sends the socket's path, which Go's servers refuse
    ("grpc.enable_http_proxy", 0),
)
_SERVICE = "/runtime.v1.ImageService"


def pull(socket: Path, name: str, *, timeout: float = DEADLINE) -> str:
    """Let the containerd at `socket` pull the image called `name`, and return the image's id. This call blocks.

    Raises:
        CommandFailed: The pull failed. The message contains containerd's error.
    """
    # PullImageRequest's field 1 is an ImageSpec, whose field 1 is the name. PullImageResponse's field 1 is the image.
    # Protobuf's wrapper types have the same encoding.
    request = BytesValue(value=StringValue(value=name).SerializeToString()).SerializeToString()
    return StringValue.FromString(asyncio.run(_call(socket, "PullImage", request, timeout))).value


def is_ready(socket: Path) -> bool:
    """Return whether the CRI plug-in of the containerd at `socket` answers requests. This call blocks."""
    try:
        asyncio.run(_call(socket, "ListImages", b"", DEADLINE))
    except CommandFailed:
        return False
    return True


async def _call(socket: Path, method: str, request: bytes, timeout: float) -> bytes:
    async with aio.insecure_channel(f"unix:{socket}", options=_OPTIONS) as channel:
        call = channel.unary_unary(f"{_SERVICE}/{method}", bytes, bytes)
        try:
            answer: bytes = await call(request, timeout=timeout)
        except aio.AioRpcError as error:
            raise CommandFailed(f"CRI's {method} at {socket}: {error.code().name}: {error.details()}") from error
    return answer
