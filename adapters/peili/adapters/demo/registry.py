"""The slow registry of the demonstration, which counts what it sends."""

from __future__ import annotations

import threading
import time
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from typing_extensions import override

from peili.mirror import Digest
from peili.mirror.testing import Image

_PIECE = 64 * 1024
"""Bytes that are sent at once."""


class SlowRegistry:
    """Serves one image of an OCI image layout over plain HTTP, all clients together at a given rate.

    Use it as a context manager. It answers in its own threads.

    Args:
        image: The image.
        tag: The tag of its manifest.
        rate: The rate in bytes per second.

    Attributes:
        address: ``host:port``.
        sent: The number of bytes of content that it sent.
    """

    def __init__(self, image: Image, tag: str, rate: float) -> None:
        self.sent = 0
        self._image = image
        self._tag = tag
        self._rate = rate
        self._lock = threading.Lock()
        self._next = 0.0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_RegistryHandler, self))
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def find(self, name: str) -> tuple[Digest, str, Path] | None:
        """Return the digest, the media type and the file of a tag or digest; None if there is none."""
        for blob in self._image.blobs:
            is_manifest = blob.digest == self._image.target.digest
            if name == blob.digest or (is_manifest and name == self._tag):
                return blob.digest, blob.media_type, self._image.blob_path(blob.digest)
        return None

    def take_turn(self, count: int) -> None:
        """Wait until `count` more bytes may be sent, and count them. May be called in any thread."""
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now) + count / self._rate
            self.sent += count
            pause = self._next - now
        time.sleep(pause)


class _RegistryHandler(BaseHTTPRequestHandler):
    def __init__(self, registry: SlowRegistry, *arguments: Any) -> None:
        self._registry = registry
        super().__init__(*arguments)  # answers the request

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        found = self._registry.find(self.path.partition("?")[0].rpartition("/")[2])
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        digest, media_type, path = found
        data = path.read_bytes()
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(HTTPStatus.PARTIAL_CONTENT if first else HTTPStatus.OK)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data) - first))
        self.send_header("Docker-Content-Digest", digest)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        for offset in range(first, len(data) if with_body else first, _PIECE):
            piece = data[offset : offset + _PIECE]
            self._registry.take_turn(len(piece))
            self.wfile.write(piece)

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
