"""Peers notice changes in a host's containerd. This takes at most two seconds on an idle machine."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from tests.e2e.checks import KIB, assert_has, wait_found
from tests.lab.access import chosen_access
from tests.lab.lab import Lab
from tests.lab.processes import wait_for
from tests.lab.releases import each_release, release
from tests.lab.upstream import Published

from peili.mirror.testing.images import make_layout, pack_tar


@pytest.fixture(scope="module", params=each_release("forky"))
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    with Lab("a", "b", release=release(request.param), access=chosen_access("key")) as lab:
        lab.start_peili()
        yield lab


def test_content_is_offered_again_after_containerd_restarts(lab: Lab) -> None:
    a, b = lab.hosts.values()
    published = lab.publish("library/restart", [100 * KIB])
    a.containerd.pull(published.by_digest)
    layer_url = published.blob_url(published.image.layers[0].digest)
    wait_for(lambda: b.can_fetch_from(a, layer_url), "b sees what a pulled")

    a.containerd.stop()
    wait_for(lambda: not a.peili.is_ready(), "a's peili is not ready without containerd")
    a.containerd.start()
    wait_for(lambda: a.peili.is_ready() and b.can_fetch_from(a, layer_url), "b sees it again")

    later = lab.publish("library/later", [100 * KIB])
    a.containerd.pull(later.by_digest)
    wait_for(lambda: b.can_find(later.blob_url(later.image.layers[0].digest)), "b finds what a has pulled since then")


def test_an_image_that_was_removed_is_no_longer_offered(lab: Lab) -> None:
    a, b = lab.hosts.values()
    published = lab.publish("library/removed", [100 * KIB])
    a.containerd.pull(published.by_tag)
    layer = published.image.layers[0].digest
    offers = (published.blob_url(layer), f"/_router/keys/{layer}", f"/_router/keys/{published.by_tag}")
    wait_for(lambda: all(b.can_fetch_from(a, offer) for offer in offers), "a offers it")
    a.containerd.remove(published.by_tag)
    wait_for(lambda: not any(b.can_fetch_from(a, offer) for offer in offers), "a offers it no longer")


def test_an_imported_image_is_offered_and_pulled(lab: Lab) -> None:
    a, b = lab.hosts.values()
    layout = lab.directory / "imported"
    name = f"{lab.upstream.name}/library/imported"
    image = make_layout(layout, layers=[100 * KIB], tags=[f"{name}:v1"])
    a.containerd.import_archive(pack_tar(layout, lab.directory / "imported.tar"))
    wait_for(lambda: b.can_fetch_from(a, f"/_router/keys/{name}:v1"), "b sees the tag")
    wait_found(b, Published(image, lab.upstream.name, "library/imported", "v1"))
    b.containerd.pull(f"{name}@{image.target.digest}")  # upstream does not have this image
    assert_has(b, image)
