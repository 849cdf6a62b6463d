"""The running hash: for any pieces, it passes on the content, and the last piece only if the digest is right."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.mirror import Digest
from peili.mirror.relay.hash_threads import HashThread
from peili.mirror.relay.ingest import read_back
from peili.mirror.relay.verify import DigestMismatch, Unverified, Verifier
from peili.stores.memory import MemoryStore

PIECES = st.lists(st.binary(max_size=50), max_size=20)


@given(PIECES, st.sampled_from(["sha256", "sha512"]))
def test_each_piece_is_passed_on_after_the_next_one(pieces: list[bytes], algorithm: str) -> None:
    data = b"".join(pieces)
    verifier = Verifier(Digest.of(data, algorithm))
    passed = b""
    for place, piece in enumerate(pieces):
        passed += verifier.feed(piece)
        assert passed == b"".join(pieces[:place])
    assert passed + verifier.finish() == data


@given(PIECES.filter(any), st.data())
def test_a_wrong_bit_is_noticed_and_the_end_is_withheld(pieces: list[bytes], chosen: st.DataObject) -> None:
    data = b"".join(pieces)
    place = chosen.draw(st.integers(0, 8 * len(data) - 1))
    wrong = bytearray(data)
    wrong[place // 8] ^= 1 << place % 8
    verifier = Verifier(Digest.of(bytes(wrong)))
    for piece in pieces:
        verifier.feed(piece)
    with pytest.raises(DigestMismatch):
        verifier.finish()


@given(PIECES)
def test_release_passes_on_the_withheld_piece(pieces: list[bytes]) -> None:
    verifier = Verifier(Digest.of(b"anything"))
    passed = b"".join(verifier.feed(piece) for piece in pieces)
    assert passed + verifier.release() == b"".join(pieces)
    assert verifier.release() == b""


@given(PIECES)
def test_unverified_pieces_are_passed_on_at_once(pieces: list[bytes]) -> None:
    verifier = Unverified(Digest.of(b"anything"))
    assert [verifier.feed(piece) for piece in pieces] == pieces
    assert (verifier.release(), verifier.finish()) == (b"", b"")


async def _seeded(digest: Digest, at: int, store: MemoryStore) -> Verifier | None:
    verifier = Verifier(digest)
    return verifier if await read_back(verifier, digest, at, store) else None


@pytest.mark.anyio
@pytest.mark.parametrize("at", [0, 1, 999, 1000])
async def test_a_seeded_verifier_verifies_the_rest(at: int) -> None:
    data, store = bytes(range(250)) * 4, MemoryStore()
    digest = Digest.of(data)
    store.begin(digest).write(data[:at])
    verifier = await _seeded(digest, at, store)
    assert verifier is not None
    assert verifier.feed(data[at:]) == b""
    assert verifier.finish() == data[at:]
    wrong = await _seeded(digest, at, store)
    assert wrong is not None
    wrong.feed(data[at:] + b"!")
    with pytest.raises(DigestMismatch):
        wrong.finish()


@pytest.mark.anyio
async def test_there_is_no_seed_if_the_store_has_too_few_bytes() -> None:
    store, digest = MemoryStore(), Digest.of(b"whole")
    assert await _seeded(digest, 2, store) is None
    store.begin(digest).write(b"w")
    assert await _seeded(digest, 2, store) is None
    assert await _seeded(digest, 1, store) is not None


@pytest.mark.anyio
async def test_only_pieces_that_come_fast_or_are_large_go_to_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("peili.mirror.relay.hash_threads.time", SimpleNamespace(monotonic=lambda: now))
    thread, verifier, medium = HashThread(), Verifier(Digest.of(b"")), memoryview(bytes(100_000))
    try:
        assert thread.feed(verifier, medium).done()
        now += 0.001
        fast = thread.feed(verifier, medium)
        assert not fast.done()
        await fast
        await asyncio.sleep(0)  # the thread is known to be idle
        now += 1
        assert thread.feed(verifier, medium).done()
    finally:
        thread.close()
