"""skopeo pulls from the local door. It sends no `ns`, so the registry is in the path. No upstream registry exists."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.e2e.checks import KIB, MIB, wait_found
from tests.lab.lab import Host, Lab
from tests.lab.processes import run, wait_for
from tests.lab.releases import each_release, release
from tests.lab.upstream import Published

from peili.mirror.testing.images import Image, make_layout, pack_tar

REPOSITORY = "registry.invalid/library/demo"


@pytest.fixture(scope="module", params=each_release("trixie"))
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    with Lab("holder", "peer", release=release(request.param)) as lab:
        lab.start_peili("holder", resolver={"kind": "local"})
        lab.start_peili("peer", resolver={"kind": "peers"})
        yield lab


@pytest.fixture(scope="module")
def image(lab: Lab) -> Image:
    """An image that was imported into the containerd of the holder."""
    layout = lab.directory / "layout"
    image = make_layout(layout, layers=[3 * MIB, 200 * KIB], tags=[f"{REPOSITORY}:v1"])
    lab.hosts["holder"].containerd.import_archive(pack_tar(layout, lab.directory / "image.tar"))
    registry, _, repository = REPOSITORY.partition("/")
    imported = Published(image, registry, repository, "v1")
    wait_found(lab.hosts["peer"], imported)
    wait_for(lambda: lab.hosts["peer"].can_find(imported.tag_url), "the tag is found")
    return image


@pytest.mark.parametrize("name", ["holder", "peer"])
@pytest.mark.parametrize("by", ["tag", "digest"])
def test_skopeo_copies_an_image_from_the_local_door(lab: Lab, image: Image, tmp_path: Path, name: str, by: str) -> None:
    reference = f"{REPOSITORY}:v1" if by == "tag" else f"{REPOSITORY}@{image.target.digest}"
    skopeo_copy(lab.hosts[name], reference, tmp_path / "copy")
    for blob in (image.config, *image.layers):
        assert digest_of(tmp_path / "copy" / blob.digest.encoded) == blob.digest
    assert digest_of(tmp_path / "copy" / "manifest.json") == image.target.digest


def skopeo_copy(host: Host, reference: str, to: Path) -> None:
    source = f"docker://{host.peili.local}/{reference}"
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", source, f"dir:{to}"]
    run(host.node.command(command))


def digest_of(file: Path) -> str:
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
