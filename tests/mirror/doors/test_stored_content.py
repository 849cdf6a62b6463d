"""Content that is missing when it is read: no status is sent before its first byte is available."""

from __future__ import annotations

import pytest
from tests.mirror.doors.in_memory_host import DOORS, client_for, error_codes
from typing_extensions import override

from peili.mirror import Aborted, Content, Descriptor, Digest, Mirror, StoreUnavailable
from peili.mirror.oci.references import OCTET_STREAM
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

LOST = Digest.of(b"lost")
PATH = f"/v2/registry.example/demo/blobs/{LOST}"


class Vanished(Content):
    """Content that fails at the first read."""

    def __init__(self, outcome: Exception | int) -> None:
        self.size = self.available = 1000
        self.complete = True
        self._outcome = outcome

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    @override
    async def wait(self, past: int) -> int:
        return 1000

    @override
    async def aclose(self) -> None:
        pass


class LosingStore(MemoryStore):
    """A store that describes content which it no longer has."""

    def __init__(self, outcome: Exception | int) -> None:
        super().__init__()
        self._outcome = outcome

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        return Descriptor(OCTET_STREAM, digest, 1000)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        return Vanished(self._outcome)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("outcome", [Aborted("removed"), 0], ids=["aborted", "empty"])
async def test_content_removed_in_the_meantime_is_404(door: str, outcome: Exception | int) -> None:
    mirror = Mirror(LosingStore(outcome), MemoryRouter())
    async with mirror, client_for(getattr(mirror, door)) as client:
        response = await client.get(PATH)
        assert (response.status_code, error_codes(response)) == (404, ["BLOB_UNKNOWN"])


async def test_a_backend_lost_in_the_meantime_is_503() -> None:
    mirror = Mirror(LosingStore(StoreUnavailable("away")), MemoryRouter())
    async with mirror, client_for(mirror.peer) as client:
        assert (await client.get(PATH)).status_code == 503
