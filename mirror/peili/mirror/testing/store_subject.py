"""What the author of a store gives to the conformance kit, and what its checks have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from peili.mirror.oci.media_types import OCI_MANIFEST, OCTET_STREAM
from peili.mirror.oci.references import Digest, Reference
from peili.mirror.plugins.interfaces import Store
from peili.mirror.testing.content_kit import Arrival, read_range
from peili.mirror.testing.promises import expect, fresh_bytes
from peili.mirror.testing.watching import Watched


class StoreSubject(ABC):
    """A store to be checked, and its author's hands on the backend that it shows.

    `store` is not entered: the kit does that, more than once. Changes are made while it is and while it is not.
    """

    store: Store

    @abstractmethod
    async def add(self, data: bytes, reference: Reference | None = None) -> None:
        """Bring whole content into the backend; with a `reference`, which then stands for it, it is a manifest."""

    @abstractmethod
    async def remove(self, digest: Digest) -> None:
        """Take content out of the backend, and the references that stand for it."""

    async def begin(self, data: bytes) -> Arrival | None:
        """Let content begin to arrive, of which nothing is there yet; None where the store can't show such."""
        return None

    async def lose(self) -> bool:
        """Take the whole backend away; False where that can't happen."""
        return False

    async def restore(self) -> None:
        """Bring back what `lose` took away, as it was."""
        raise NotImplementedError


StoreFactory = Callable[[], AbstractAsyncContextManager[StoreSubject]]
"""Gives a store over a backend of its own at each call, and cleans up after it."""

REFERENCE = Reference("registry.example", "conformance/demo", "v1")


def manifest() -> bytes:
    """A manifest that no backend has yet, of things that are nowhere."""
    entry = {"mediaType": OCTET_STREAM, "digest": Digest.of(fresh_bytes(10)), "size": 10}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entry, "layers": []}).encode()


def index_of(data: bytes) -> bytes:
    """An index of one manifest that does not name its own type, as indexes need not."""
    entry = {"mediaType": OCI_MANIFEST, "digest": Digest.of(data), "size": len(data)}
    return json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()


async def told(watched: Watched, digest: Digest) -> None:
    """Wait until `watched` knows that `digest` is there whole."""
    await watched.until(lambda: digest in watched.have and watched.have[digest].complete)


async def read_back(store: Store, data: bytes) -> None:
    """`data` has to be in `store`."""
    digest = Digest.of(data)
    expect((await store.describe(digest)).size == len(data), "describe gave another size")
    async with await store.open(digest) as content:
        expect(await read_range(content, 0, len(data)) == data, "other bytes were read")
