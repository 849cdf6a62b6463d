"""Tags, from containerd's image service."""

from __future__ import annotations

import asyncio

import pytest
from tests.lab.containerd import Containerd
from tests.stores.containerd.helpers import PROMPT, ready
from tests.stores.containerd.namespace import TAG, Namespace, new_namespace

from peili.mirror import NotFound, Reference
from peili.stores.containerd import ContainerdStore

pytestmark = pytest.mark.anyio

DEMO = Reference.parse(TAG)


async def until_not_found(store: ContainerdStore, reference: Reference) -> None:
    """Wait until `reference` is not found: until the next list, the store trusts the last one."""
    while True:
        try:
            await store.resolve(reference)
        except NotFound:
            return
        await asyncio.sleep(0.01)


async def test_a_tag_resolves_to_the_target_of_its_image(store: ContainerdStore, namespace: Namespace) -> None:
    image = await namespace.load()
    assert await store.resolve(DEMO) == image.target


async def test_a_moved_tag_resolves_to_its_new_target(store: ContainerdStore, namespace: Namespace) -> None:
    before = await namespace.load()
    now = await namespace.load()
    assert before.target != now.target
    assert await store.resolve(DEMO) == now.target


async def test_an_unknown_tag_is_not_found(store: ContainerdStore, namespace: Namespace) -> None:
    await namespace.load("docker.io/library/demo:v2")
    with pytest.raises(NotFound, match="no image"):
        await store.resolve(DEMO)


async def test_a_tag_without_its_content_is_not_found(store: ContainerdStore, namespace: Namespace) -> None:
    image = await namespace.load()
    await namespace.ctr("content", "rm", image.target.digest)
    async with asyncio.timeout(PROMPT):
        await until_not_found(store, DEMO)
    assert await store.images() == []


async def test_images_are_sorted_by_reference(store: ContainerdStore, namespace: Namespace) -> None:
    b = await namespace.load("docker.io/library/demo:b", "ghcr.io/me/x:1")
    a = await namespace.load("docker.io/library/demo:a")
    assert [(str(reference), target) for reference, target in await store.images()] == [
        ("docker.io/library/demo:a", a.target),
        ("docker.io/library/demo:b", b.target),
        ("ghcr.io/me/x:1", b.target),
    ]


async def test_images_that_are_not_full_tag_references_are_left_out(
    store: ContainerdStore, namespace: Namespace
) -> None:
    image = await namespace.load()
    flags = await namespace.flags("images", "tag", "--local", "--skip-reference-check")  # 2.x: allow odd names
    for name in (f"docker.io/library/demo@{image.target.digest}", str(image.config.digest), "short:v1", "Odd Name"):
        await namespace.ctr("images", "tag", *flags, TAG, name)
    assert await store.images() == [(DEMO, image.target)]


async def test_the_first_namespace_that_has_a_tag_wins(shared_containerd: Containerd, namespace: Namespace) -> None:
    other = new_namespace(shared_containerd, namespace.directory)
    here = await namespace.load()
    there, only_there = await other.load(), await other.load("docker.io/library/other:v1")
    store = ContainerdStore(str(shared_containerd.socket), namespaces=[namespace.name, other.name])
    async with ready(store):
        assert await store.resolve(DEMO) == here.target
        assert dict(await store.images()) == {
            DEMO: here.target,
            Reference.parse("docker.io/library/other:v1"): only_there.target,
        }
        assert (await store.describe(there.target.digest)).size == there.target.size


async def test_every_namespace_is_served_by_default(own_namespace: Namespace) -> None:
    store = ContainerdStore(f"unix://{own_namespace.containerd.socket}")
    async with ready(store):
        assert await store.images() == []
        one = await own_namespace.load("docker.io/library/demo:one")
        two = await new_namespace(own_namespace.containerd, own_namespace.directory).load("docker.io/library/demo:two")
        assert (await store.describe(one.target.digest)).size == one.target.size
        assert await store.resolve(Reference.parse("docker.io/library/demo:two")) == two.target


async def test_an_image_without_a_tag_has_a_repository(store: ContainerdStore, namespace: Namespace) -> None:
    image = await namespace.load("ghcr.io/me/x:1")
    digest = image.target.digest
    for name in (f"quay.io/me/pulled@{digest}", f"quay.io/me/both:2@{digest}", str(digest)):
        await namespace.ctr("images", "tag", "ghcr.io/me/x:1", name)
    assert set(await store.repositories()) == {
        ("ghcr.io", "me/x", digest),
        ("quay.io", "me/pulled", digest),
        ("quay.io", "me/both", digest),
    }
