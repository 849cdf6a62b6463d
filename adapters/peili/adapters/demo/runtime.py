"""A small runtime of the demonstration: it pulls into an OCI image layout, in its own process.

``python -m peili.adapters.demo.runtime MIRROR UPSTREAM NAME LAYOUT`` pulls the image NAME. It asks the mirror first and
goes upstream if the mirror answers 404, as container runtimes do. It writes each blob to a file that grows, so that the
store of the layout can show it to other hosts. It prints one JSON object for each step.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from peili.mirror import Digest, Reference

_MAX_TRIES = 8
"""How often one blob is requested. A response that is cut off is continued by a further request."""
_STEPS = 4
"""How many times the progress of a blob is printed."""
_LARGE = 1 << 20
"""Bytes from which on progress is printed."""


class DemoRuntime:
    """Pulls one image.

    Args:
        mirror: ``host:port`` of the local door.
        upstream: ``host:port`` of the registry.
        name: The image: a full tag reference.
        layout: The directory of the OCI image layout. It exists.
    """

    def __init__(self, mirror: str, upstream: str, name: str, layout: Path) -> None:
        self._reference = Reference.parse(name)
        self._layout = layout
        self._servers = (mirror, upstream)
        # The environment may name a proxy, which cannot reach this machine's loopback.
        self._client = httpx.Client(trust_env=False, timeout=60)

    def pull(self) -> Iterator[dict[str, Any]]:
        """Pull the image.

        Yields:
            For each step: what it is, the digest, the size and the received number of bytes, and the server.

        Raises:
            httpx.HTTPError: A server cannot be reached, or answers with an error.
            ValueError: The content is wrong, or stays incomplete.
        """
        head = self._client.head(f"http://{self._servers[1]}{self._path('manifests', self._reference.tag)}")
        head.raise_for_status()
        digest = Digest(head.headers["docker-content-digest"])
        yield from self._fetch("manifest", "manifests", digest, int(head.headers["content-length"]))
        manifest = json.loads(self._blob(digest).read_bytes())
        for what, blob in [("config", manifest["config"]), *(("layer", layer) for layer in manifest["layers"])]:
            yield from self._fetch(what, "blobs", Digest(blob["digest"]), blob["size"])

    def _fetch(self, what: str, kind: str, digest: Digest, size: int) -> Iterator[dict[str, Any]]:
        """Fetch content into a file of `ingest`, and move it to `blobs` when it is whole and right."""
        unfinished = self._layout / "ingest" / digest.algorithm / f"{digest.encoded}.{size}"
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        step: dict[str, Any] = {"what": what, "digest": digest, "size": size}
        with unfinished.open("wb", buffering=0) as file:
            for _ in range(_MAX_TRIES):
                for server, received in self._receive(kind, digest, file.tell()):
                    file.write(received)
                    done, before = file.tell(), file.tell() - len(received)
                    if size >= _LARGE and done * _STEPS // size > before * _STEPS // size:
                        yield {**step, "received": done, "server": server}
                if file.tell() >= size:
                    break
        if hashlib.new(digest.algorithm, unfinished.read_bytes()).hexdigest() != digest.encoded:
            raise ValueError(f"{digest}: the content is wrong or incomplete")
        unfinished.rename(self._blob(digest))
        if size < _LARGE:
            yield {**step, "received": size, "server": ""}

    def _receive(self, kind: str, digest: Digest, offset: int) -> Iterator[tuple[str, bytes]]:
        """Yield more bytes, each with the server: from the mirror or, if that answers 404, from upstream."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        for server, address in zip(("mirror", "upstream"), self._servers, strict=True):
            parameters = {"ns": self._reference.registry} if server == "mirror" else {}
            url = f"http://{address}{self._path(kind, digest)}"
            with self._client.stream("GET", url, headers=headers, params=parameters) as response:
                if server == "mirror" and response.status_code == 404:
                    continue
                response.raise_for_status()
                try:
                    for data in response.iter_raw():
                        yield server, data
                except httpx.RemoteProtocolError:
                    pass  # cut off: the next request continues at this byte
                return

    def _path(self, kind: str, name: str) -> str:
        return f"/v2/{self._reference.repository}/{kind}/{name}"

    def _blob(self, digest: Digest) -> Path:
        return self._layout / "blobs" / digest.algorithm / digest.encoded


def _main(mirror: str, upstream: str, name: str, layout: str) -> int:
    try:
        for step in DemoRuntime(mirror, upstream, name, Path(layout)).pull():
            sys.stdout.write(json.dumps(step) + "\n")
            sys.stdout.flush()
    except (httpx.HTTPError, ValueError, OSError) as error:
        sys.stdout.write(json.dumps({"what": "failure", "why": str(error) or repr(error)}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
