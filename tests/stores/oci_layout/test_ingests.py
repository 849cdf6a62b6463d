"""Blobs that another program is still writing to an OCI layout."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from peili.mirror import Aborted, Digest, Gone, Have, NotFound
from peili.mirror.testing import Watched, entered, watching
from peili.mirror.testing.images import make_layout
from peili.stores.oci_layout import OciLayoutStore

pytestmark = pytest.mark.anyio

DATA = os.urandom(100_000)
DIGEST = Digest.of(DATA)


@asynccontextmanager
async def running(path: Path) -> AsyncGenerator[tuple[OciLayoutStore, Watched]]:
    """Run a store, and wait for its first scan."""
    store = OciLayoutStore(path)
    async with entered(store), watching(store) as watched:
        await watched.until(lambda: watched.synced, within=60)
        yield store, watched


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    path = make_layout(tmp_path / "layout", layers=[3000], tags=["docker.io/library/demo:v1"], seed=1).path
    (path / "ingest" / "sha256").mkdir(parents=True)
    return path


@pytest.fixture
def ingest(layout: Path) -> Path:
    return layout / "ingest" / "sha256" / f"{DIGEST.encoded}.{len(DATA)}"


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def commit(ingest: Path) -> None:
    """Move the file of an ingest to its place among the blobs."""
    ingest.rename(ingest.parents[2] / "blobs" / "sha256" / DIGEST.encoded)


async def test_an_ingest_becomes_a_blob_without_a_gap(layout: Path, ingest: Path) -> None:
    async with running(layout) as (_, watched):
        write(ingest, DATA)
        partial = Have(DIGEST, len(DATA), complete=False, available=len(DATA))
        await watched.until(lambda: watched.have.get(DIGEST) == partial, within=60)
        commit(ingest)
        await watched.until(lambda: watched.have.get(DIGEST) == Have(DIGEST, len(DATA)), within=60)
        assert Gone(DIGEST) not in watched.events
        other = b"another blob"
        (layout / "blobs" / "sha256" / Digest.of(other).encoded).write_bytes(other)
        await watched.until(lambda: Digest.of(other) in watched.have, within=60)
        assert Gone(DIGEST) not in watched.events


async def test_an_ingest_is_opened_before_it_is_reported(layout: Path, ingest: Path) -> None:
    async with running(layout) as (store, _):
        with pytest.raises(NotFound):
            await store.open(DIGEST, partial=True)
        write(ingest, DATA[:1000])
        async with await store.open(DIGEST, partial=True) as content:
            assert (content.size, content.available, content.complete) == (len(DATA), 1000, False)


@pytest.mark.parametrize("suffix", ["", ".", ".0", ".-1", ".1e3", ".05", ".100000.tmp", ".99", f".{'9' * 30}"])
async def test_other_files_are_ignored(layout: Path, ingest: Path, suffix: str) -> None:
    ingest.with_name(f"{DIGEST.encoded}{suffix}").write_bytes(DATA[:100])
    ingest.with_name("README").touch()
    async with running(layout) as (store, watched):
        assert DIGEST not in watched.have
        if suffix != ".99":  # too long: its reader notices that the digest is wrong
            with pytest.raises(NotFound):
                await store.open(DIGEST, partial=True)


async def test_a_symbolic_link_is_not_followed(layout: Path, ingest: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(DATA[:100])
    link(ingest, secret)
    async with running(layout) as (store, watched):
        assert DIGEST not in watched.have
        with pytest.raises(NotFound):
            await store.open(DIGEST, partial=True)


async def test_a_damaged_blob_that_was_an_ingest_is_not_served(layout: Path, ingest: Path) -> None:
    async with running(layout) as (store, watched):
        write(ingest, bytes(len(DATA)))
        await watched.until(lambda: DIGEST in watched.have, within=60)
        commit(ingest)
        await watched.until(lambda: watched.have.get(DIGEST) == Have(DIGEST, len(DATA)), within=60)
        with pytest.raises(NotFound):
            await store.open(DIGEST)


async def test_an_ingest_that_nobody_writes_is_given_up_until_it_grows(layout: Path, ingest: Path) -> None:
    async with running(layout) as (store, watched):
        write(ingest, DATA[:1000])
        await watched.until(lambda: DIGEST in watched.have, within=60)
        async with await store.open(DIGEST, partial=True) as content:
            os.utime(ingest, (1, 1))
            with pytest.raises(Aborted, match="given up"):
                await content.wait(1000)
        await watched.until(lambda: DIGEST not in watched.have, within=60)
        with pytest.raises(NotFound):
            await store.open(DIGEST, partial=True)
        write(ingest, DATA[:2000])
        partial = Have(DIGEST, len(DATA), complete=False, available=2000)
        await watched.until(lambda: watched.have.get(DIGEST) == partial, within=60)
