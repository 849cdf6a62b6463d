"""The paths of bytes through a relay: hashed in other threads, spliced by the kernel, or read over TLS."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.mirror.relay.peers import ScriptedPeer, honest, listening, peers, resets_after, wrong_bytes
from tests.mirror.relay.pulling import DATA_PATHS, LARGE, MIB, SMALL, content, pulling
from tests.support.certificates import make_certificate
from tests.support.waiting import until

from peili.mirror import Digest
from peili.mirror.relay import hash_threads
from peili.mirror.relay.verify import Piece, Verifier

pytestmark = pytest.mark.anyio


class HashRecorder:
    """Records in which thread pieces were hashed, and how large they were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here: list[int] = []
        self.elsewhere: list[int] = []
        feed = Verifier.feed
        loop = threading.get_ident()

        def recording_feed(verifier: Verifier, piece: Piece) -> Piece:
            (self.here if threading.get_ident() == loop else self.elsewhere).append(len(piece))
            return feed(verifier, piece)

        monkeypatch.setattr(Verifier, "feed", recording_feed)


class SpliceRecorder:
    """Counts the bytes that the kernel moved into a pipe."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moves: dict[int, int] = {}
        splice = os.splice

        def counting_splice(source: int, target: int, *args: Any, **named: Any) -> int:
            moved = splice(source, target, *args, **named)
            self.moves[target] = self.moves.get(target, 0) + moved
            return moved

        monkeypatch.setattr(os, "splice", counting_splice)

    @property
    def moved(self) -> int:
        """The bytes that certainly went into a pipe and out again."""
        return sum(self.moves.values()) // 2


async def test_hashing_runs_in_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_threads, "_RATE_ON_LOOP", 0)  # pieces count as fast, also on a machine that stands still
    data, hashed = content(8 * MIB), HashRecorder(monkeypatch)
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        assert (await host.get(Digest.of(data))).body == data
    assert sum(hashed.here + hashed.elsewhere) == len(data)
    assert max(hashed.here, default=0) < 64 * 1024
    assert sum(hashed.elsewhere) > 7 * MIB


async def test_hashing_in_ten_transfers_does_not_slow_a_head_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, hashing goes on until HEAD requests are answered. On the event loop, that would be for ever."""
    data, feed = content(2 * MIB), Verifier.feed
    answered, hashing, in_vain = threading.Event(), threading.Event(), threading.Event()

    def slow(verifier: Verifier, piece: Piece) -> Piece:
        if len(piece) > 64 * 1024:
            hashing.set()
            if not answered.wait(60):
                in_vain.set()
        return feed(verifier, piece)

    monkeypatch.setattr(Verifier, "feed", slow)
    async with peers(data, honest) as [a], pulling([a.holder], stall_timeout=90, first_byte_timeout=90) as host:
        transfers = [asyncio.create_task(host.get(Digest.of(data))) for _ in range(10)]
        await until(hashing.is_set)
        for _ in range(10):
            assert (await host.get(Digest.of(b"content of no peer"), method="HEAD")).status == 404
        answered.set()
        assert not in_vain.is_set()
        assert {(await each).body == data for each in transfers} == {True}


@pytest.mark.parametrize("byte_range", [None, "bytes=1000-4194303"])
async def test_unverified_content_is_spliced(byte_range: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    data, spliced, hashed = content(4 * MIB), SpliceRecorder(monkeypatch), HashRecorder(monkeypatch)
    async with peers(data, honest) as [a], pulling([a.holder], verify=False) as host:
        pulled = await host.get(Digest.of(data), byte_range)
        assert pulled.body == (data[1000:] if byte_range else data)
    assert hashed.here + hashed.elsewhere == []
    assert spliced.moved > len(data) - 64 * 1024  # all but the bytes that came with the head of the response


async def test_a_part_that_cannot_be_verified_is_spliced(monkeypatch: pytest.MonkeyPatch) -> None:
    data, spliced = content(4 * MIB), SpliceRecorder(monkeypatch)
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        assert (await host.get(Digest.of(data), f"bytes=0-{3 * MIB}")).body == data[: 3 * MIB + 1]
    assert spliced.moved > 2 * MIB


@pytest.mark.parametrize("path", ["hashed", "hashed, messages", "untouched, messages"])
async def test_other_paths_do_not_splice(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, spliced = content(LARGE), SpliceRecorder(monkeypatch)
    async with peers(data, honest) as [a], pulling([a.holder], **DATA_PATHS[path]) as host:
        assert (await host.get(Digest.of(data))).body == data
    assert spliced.moves == {}


async def test_pipes_are_closed() -> None:
    data = content(LARGE)
    async with (
        peers(data, resets_after(100_000), honest) as [a, b],
        pulling([a.holder, b.holder], verify=False) as host,
    ):
        await host.get(Digest.of(data))
        before = _pipes()
        for _ in range(5):
            await host.get(Digest.of(data))
        assert _pipes() <= before


def _pipes() -> int:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return sum(os.path.exists(link) and os.readlink(link).startswith("pipe:") for link in links)  # noqa: PTH110, PTH115


async def _secure(peer: ScriptedPeer, server: ssl.SSLContext) -> asyncio.Server:
    listener = await asyncio.start_server(peer.serve, "127.0.0.1", 0, ssl=server)
    peer.urls = (f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}",)
    return listener


@pytest.mark.parametrize("path", DATA_PATHS)
@pytest.mark.parametrize("size", [SMALL, LARGE, 4 * MIB])
async def test_a_peer_is_read_over_tls(path: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spliced = SpliceRecorder(monkeypatch)
    node = make_certificate(tmp_path)
    server, client = node.server_context(), node.client_context()
    data = content(size)
    peer = ScriptedPeer("a", data, honest)
    async with await _secure(peer, server), pulling([peer.holder], client_ssl=client, **DATA_PATHS[path]) as host:
        for _ in range(3):
            assert (await host.get(Digest.of(data))).body == data
        assert peer.connections == 1
    assert spliced.moves == {}


async def test_a_wrong_end_over_tls_is_withheld_and_fetched_from_a_plain_peer(tmp_path: Path) -> None:
    node = make_certificate(tmp_path)
    server, client = node.server_context(), node.client_context()
    data = content(LARGE)
    wrong, right = ScriptedPeer("a", data, wrong_bytes), ScriptedPeer("b", data, honest)
    async with (
        await _secure(wrong, server),
        listening(right),
        pulling([wrong.holder, right.holder], client_ssl=client) as host,
    ):
        assert (await host.get(Digest.of(data))).body == data
        assert (await host.get(Digest.of(data))).body == data
        assert len(wrong.requests) == 1


@pytest.mark.parametrize("path", DATA_PATHS)
async def test_a_plain_peer_continues_a_transfer_that_began_over_tls(path: str, tmp_path: Path) -> None:
    node = make_certificate(tmp_path)
    server, client = node.server_context(), node.client_context()
    data = content(LARGE)
    breaking, right = ScriptedPeer("a", data, resets_after(200_000)), ScriptedPeer("b", data, honest)
    async with (
        await _secure(breaking, server),
        listening(right),
        pulling([breaking.holder, right.holder], client_ssl=client, **DATA_PATHS[path]) as host,
    ):
        assert (await host.get(Digest.of(data))).body == data
        assert len(right.requests) == 1
