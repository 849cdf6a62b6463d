"""Writes blobs and images into containerd, as slowly as a test needs.

The store does not use these calls, so this module encodes their few messages itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from peili.mirror import Digest
from peili.mirror.oci.references import OCI_MANIFEST
from peili.mirror.testing import Arrival
from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.guarded_grpc import StatusCode, aio

_STAT, _WRITE, _COMMIT = range(3)
_GC_ROOT = {"containerd.io/gc.root": "yes"}  # garbage collection skips the blob


def varint(number: int) -> bytes:
    """Encode `number` as a protobuf varint."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def field(tag: int, value: int | str | bytes) -> bytes:
    """Encode one field of a protobuf message."""
    if isinstance(value, int):
        return varint(tag << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(tag << 3 | 2) + varint(len(data)) + data


class Writer(Arrival):
    """An ingest that becomes `data`, with a ref like that of a pull. Created by `writing`."""

    def __init__(
        self, call: aio.StreamStreamCall[bytes, bytes], api: ContainerdApi, namespace: str, data: bytes, ref: str
    ) -> None:
        self.digest = Digest.of(data)
        self._call = call
        self._api = api
        self._namespace = namespace
        self._size = len(data)
        self._ref = ref
        self._offset = 0

    async def begin(self) -> None:
        await self._send(_STAT, field(2, self._ref) + field(3, self._size) + field(4, self.digest))

    def continue_at(self, offset: int) -> None:
        """Continue an ingest that has `offset` bytes."""
        self._offset = offset

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), 1 << 20):
            piece = data[start : start + (1 << 20)]
            await self._send(_WRITE, field(5, self._offset) + field(6, piece))
            self._offset += len(piece)

    async def commit(self) -> None:
        labels = b"".join(field(7, field(1, key) + field(2, value)) for key, value in _GC_ROOT.items())
        await self._send(_COMMIT, field(3, self._size) + field(4, self.digest) + field(5, self._offset) + labels)
        await self.disconnect()

    async def abort(self) -> None:
        await self.disconnect()
        await self._api.abort(self._namespace, self._ref)

    async def disconnect(self) -> None:
        """End the call like a client that dies: the ingest stays."""
        await self._call.done_writing()
        while await self._call.read() is not aio.EOF:
            pass

    async def _send(self, action: int, rest: bytes) -> None:
        await self._call.write(field(1, action) + rest)
        await self._call.read()


@asynccontextmanager
async def writing(socket: Path, namespace: str, data: bytes, key: str = "layer-") -> AsyncGenerator[Writer, None]:
    """Start an ingest of `data`, which is empty so far."""
    async with ContainerdApi(socket) as api, aio.insecure_channel(f"unix:{socket}") as channel:
        write: aio.StreamStreamMultiCallable[bytes, bytes]
        write = channel.stream_stream("/containerd.services.content.v1.Content/Write", bytes, bytes)
        call = write(metadata=(("containerd-namespace", namespace),))
        writer = Writer(call, api, namespace, data, f"{key}{Digest.of(data)}")
        await writer.begin()
        yield writer
        await writer.disconnect()


async def set_image(socket: Path, namespace: str, name: str, digest: Digest, size: int) -> None:
    """Create the image `name` of the OCI manifest `digest`, or let the existing one mean it, as a pull does."""
    target = field(1, OCI_MANIFEST) + field(2, digest) + field(3, size)
    request, metadata = field(1, field(1, name) + field(3, target)), (("containerd-namespace", namespace),)
    async with aio.insecure_channel(f"unix:{socket}") as channel:

        async def call(method: str) -> None:
            path = f"/containerd.services.images.v1.Images/{method}"
            await channel.unary_unary(path, bytes, bytes)(request, metadata=metadata)

        try:
            await call("Create")
        except aio.AioRpcError as error:
            if error.code() != StatusCode.ALREADY_EXISTS:
                raise
            await call("Update")
