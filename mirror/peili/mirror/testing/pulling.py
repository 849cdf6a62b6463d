"""Pulls as a runtime does, for the tests of those who embed a mirror."""

from __future__ import annotations

import httpx

from peili.mirror.errors import Aborted, NotFound
from peili.mirror.oci.references import Descriptor, Digest
from peili.mirror.testing.images import Image


async def pull(runtime: httpx.AsyncClient, image: Image, repository: str, *, prefix: str = "/v2") -> int:
    """Pull all of `image` by its digests; how many bytes that was.

    `runtime` is a client with the base URL of what the local door is mounted in, `prefix` the path from there to the
    API. `repository` is a name in full, such as ``docker.io/library/redis``. Each digest is checked. Raises NotFound
    where the runtime would go upstream, Aborted where what came was not the content, and what httpx raises.
    """
    registry, _, name = repository.partition("/")
    size = 0
    for each in _contents(image):
        kind = "manifests" if each in _manifests(image) else "blobs"
        answer = await runtime.get(f"{prefix}/{name}/{kind}/{each.digest}", params={"ns": registry})
        if answer.status_code != 200:
            raise NotFound(f"{each.digest}: answered with {answer.status_code}: {answer.text}")
        if Digest.of(answer.content) != each.digest:
            raise Aborted(f"{each.digest}: {len(answer.content)} bytes came that are not the content")
        size += len(answer.content)
    return size


def _manifests(image: Image) -> tuple[Descriptor, ...]:
    return (image.target, *(each.descriptor for each in image.manifests if each.descriptor != image.target))


def _contents(image: Image) -> list[Descriptor]:
    """Each once, in the order in which a runtime finds out about them."""
    blobs = (each for manifest in image.manifests for each in (manifest.config, *manifest.layers))
    return list({each.digest: each for each in (*_manifests(image), *blobs)}.values())
