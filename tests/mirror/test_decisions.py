"""At the debug level, the log says why each decision was made: of this host for a request, and as a home for others."""

from __future__ import annotations

import pytest
from tests.mirror.doors.in_memory_host import client_for, in_memory_host
from tests.mirror.relay.peers import honest, peers, resets_after
from tests.mirror.relay.pulling import LARGE, content, path_of, pulling

from peili.mirror import Digest

pytestmark = pytest.mark.anyio
STOP = 200_000


async def test_each_holder_that_is_read_and_each_that_is_replaced_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "peili")
    data = content(LARGE)
    async with peers(data, resets_after(STOP), honest) as [a, b], pulling([a.holder, b.holder]) as host:
        assert (await host.get(Digest.of(data))).body == data
    lines = [each.getMessage() for each in caplog.records if each.name == "peili.relay"]
    about = f"{Digest.of(data)}: "
    assert lines[0] == f"{about}read from a from byte 0 on, the first that delivers of a, b"
    assert lines[1].startswith(f"{about}passed over: peer a: ")
    assert lines[2] == f"{about}read from b from byte {STOP} on, the first that delivers of b"


async def test_each_answer_of_the_local_door_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "peili")
    async with (
        in_memory_host(exclude=["^quay"]) as host,
        client_for(host.mirror.local) as client,
    ):
        await client.get(host.blob_path)
        await client.get(f"/v2/quay.example/demo/blobs/{host.layer.digest}")
        await client.get(path_of(Digest.of(b"nobody")))
    lines = [each.getMessage() for each in caplog.records if each.name == "peili.local"]
    assert lines == [
        f"blobs registry.example/demo@{host.layer.digest}: sent from the store, which has it whole",
        f"blobs quay.example/demo@{host.layer.digest}: not sent: excluded by the configuration",
        f"blobs docker.io/library/demo@{Digest.of(b'nobody')}: not sent: no peer has {Digest.of(b'nobody')}",
    ]
