"""A client for the part of Kubernetes' CRI API that the tests use: pull an image, as the kubelet does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from tests.lab.authentication import Credentials
from tests.lab.processes import DEADLINE, CommandFailed

from peili.stores.containerd.guarded_grpc import aio

_OPTIONS = (
    ("grpc.default_authority", "localhost"),  # older grpcio sends the socket's path, which Go's servers refuse
    ("grpc.enable_http_proxy", 0),
)
_SERVICE = "/runtime.v1.ImageService"


def pull(socket: Path, name: str, credentials: Credentials | None = None, *, timeout: float = DEADLINE) -> str:
    """Let the containerd at `socket` pull the image called `name`, and return the image's id. This call blocks.

    The credentials are sent as the kubelet sends a pull secret.

    Raises:
        CommandFailed: The pull failed. The message contains containerd's error.
    """
    # PullImageRequest's field 1 is an ImageSpec, whose field 1 is the name. Its field 2 is an AuthConfig, whose fields
    # 1 and 2 are user and password. PullImageResponse's field 1 is the image.
    request = _field(1, _field(1, name.encode()))
    if credentials is not None:
        request += _field(2, _field(1, credentials.user.encode()) + _field(2, credentials.password.encode()))
    return StringValue.FromString(asyncio.run(_call(socket, "PullImage", request, timeout))).value


def is_ready(socket: Path) -> bool:
    """Return whether the CRI plug-in of the containerd at `socket` answers requests. This call blocks."""
    try:
        asyncio.run(_call(socket, "ListImages", b"", DEADLINE))
    except CommandFailed:
        return False
    return True


def _field(number: int, value: bytes) -> bytes:
    """Return a field of a message in protobuf's encoding. Protobuf's wrapper types have that for a field 1."""
    first, *rest = BytesValue(value=value).SerializeToString()
    return bytes([first + ((number - 1) << 3), *rest])


async def _call(socket: Path, method: str, request: bytes, timeout: float) -> bytes:
    async with aio.insecure_channel(f"unix:{socket}", options=_OPTIONS) as channel:
        call = channel.unary_unary(f"{_SERVICE}/{method}", bytes, bytes)
        try:
            answer: bytes = await call(request, timeout=timeout)
        except aio.AioRpcError as error:
            raise CommandFailed(f"CRI's {method} at {socket}: {error.code().name}: {error.details()}") from error
    return answer
