"""`TagClaims`: a home lets one host ask the registry, and the others wait for its report."""

from __future__ import annotations

import asyncio

import pytest

from peili.mirror import Descriptor, Digest, Reference
from peili.mirror.oci.references import OCI_MANIFEST
from peili.mirror.peer_api.tags import KnownTag
from peili.mirror.resolvers.shared_tags import TagClaims
from peili.mirror.resolvers.told_tags import ToldTags

pytestmark = pytest.mark.anyio

V1, V2 = (Reference("registry.example", "acme/demo", tag) for tag in ("v1", "v2"))
NEW, OLD = (KnownTag(Descriptor(OCI_MANIFEST, Digest.of(each), 3), 0.0) for each in (b"new", b"old"))
LONG = 1000.0


def claims(*, timeout: float = LONG, wait: float = LONG, most: int = 9) -> TagClaims:
    return TagClaims(ToldTags(9, lambda: None), timeout=timeout, wait=wait, most=most)


async def waiting(home: TagClaims, number: int = 3) -> list[asyncio.Task[KnownTag | None]]:
    """Return hosts that wait for the one that asks."""
    tasks = [asyncio.create_task(home.acquire(V1, LONG)) for _ in range(number)]
    await asyncio.sleep(0)
    assert not any(each.done() for each in tasks)
    return tasks


async def test_one_host_asks_and_the_others_get_what_it_reports() -> None:
    home = claims()
    assert await home.acquire(V1, LONG) is None
    others = await waiting(home)
    assert await home.acquire(V2, LONG) is None  # another tag
    home.report(V1, NEW)
    found = await asyncio.gather(*others)
    assert {None if each is None else each.descriptor for each in found} == {NEW.descriptor}
    known = await home.acquire(V1, LONG)
    assert known is not None
    assert known.descriptor == NEW.descriptor


async def test_without_an_answer_the_next_host_asks() -> None:
    home = claims()
    assert await home.acquire(V1, LONG) is None
    others = await waiting(home)
    home.report(V1, None)
    done, pending = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
    assert [each.result() for each in done] == [None]
    home.report(V1, NEW)
    assert None not in await asyncio.gather(*pending)


@pytest.mark.parametrize(("timeout", "wait"), [(0.02, LONG), (LONG, 0.02)])
async def test_a_host_that_does_not_report_is_not_waited_for_without_end(timeout: float, wait: float) -> None:
    home = claims(timeout=timeout, wait=wait)
    assert await home.acquire(V1, LONG) is None
    async with asyncio.timeout(60):
        assert await home.acquire(V1, LONG) is None


async def test_the_claims_are_bounded() -> None:
    home = claims(most=1)
    assert await home.acquire(V1, LONG) is None
    async with asyncio.timeout(60):
        assert await home.acquire(V2, LONG) is None
        assert await home.acquire(V2, LONG) is None  # nobody waits for it


async def test_an_older_answer_does_not_replace_a_newer_one() -> None:
    forgotten: list[int] = []
    told = ToldTags(1, lambda: forgotten.append(1))
    told.note(V1, NEW.descriptor)
    told.note(V1, OLD.descriptor, age=50)
    known = told.get(V1)
    assert known is not None
    assert known.descriptor == NEW.descriptor
    assert told.get(V1, within=0) is None
    told.note(V2, OLD.descriptor)
    assert (told.get(V1), len(forgotten)) == (None, 1)
