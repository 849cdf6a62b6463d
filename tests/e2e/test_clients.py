"""Real clients other than containerd, as docs/clients.md sets them up: Podman, Buildah, skopeo, Docker, BuildKit.

No upstream registry has the images, unless a test says so: the clients get them from a peer.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator
from itertools import count
from pathlib import Path

import pytest
from tests.e2e.checks import KIB, wait_found
from tests.lab.docker import Docker
from tests.lab.lab import Lab
from tests.lab.processes import ENVIRONMENT, CommandFailed, wait_for
from tests.lab.pullers import PULLERS, REGISTRY, Puller
from tests.lab.upstream import Published

from peili.mirror.testing.images import Image, make_layout, pack_tar

NUMBERS = count(1)


def needs(*commands: str) -> pytest.MarkDecorator:
    missing = [each for each in commands if shutil.which(each, path=ENVIRONMENT["PATH"]) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def lab() -> Generator[Lab]:
    with Lab("holder", "client", "deferring") as lab:
        lab.start_peili("holder", resolver={"kind": "local"})
        lab.start_peili("deferring", resolver={"kind": "defer"})
        lab.start_peili("client", resolver={"kind": "peers"}, mirror={"default_registry": "docker.io"})
        yield lab


@pytest.fixture(scope="module")
def docker(lab: Lab) -> Generator[Docker]:
    """Docker on the host `client`, with peili as the mirror of docker.io, which can't be reached."""
    if not lab.network.privileged:
        pytest.skip("network namespaces can't be created here")
    with Docker(
        lab.hosts["client"].node, lab.directory / "docker", f"http://{lab.hosts['client'].peili.local}"
    ) as docker:
        yield docker


def image_at_the_holder(lab: Lab, repository: str, *, without_a_layer: bool = False) -> Image:
    """Import a new image with the tag v1 into the containerd of the holder, and wait until other hosts find it."""
    number = next(NUMBERS)
    layout, archive = lab.directory / f"layout-{number}", lab.directory / f"image-{number}.tar"
    image = make_layout(layout, layers=[200 * KIB, 300 * KIB], tags=[f"{repository}:v1"])
    containerd = lab.hosts["holder"].containerd
    containerd.import_archive(pack_tar(layout, archive))
    registry, _, path = repository.partition("/")
    imported = Published(image, registry, path, "v1")
    wait_found_by_all(lab, imported)
    wait_for(lambda: lab.hosts["client"].can_find(imported.tag_url), "the tag is found")
    if without_a_layer:
        remove_a_layer(lab, image)
    return image


def wait_found_by_all(lab: Lab, image: Published) -> None:
    for name in ("client", "deferring"):
        wait_found(lab.hosts[name], image)


def remove_a_layer(lab: Lab, image: Image) -> None:
    """Remove a layer from the containerd of the holder, and wait until its peili knows."""
    holder = lab.hosts["holder"]
    digest = image.layers[1].digest
    holder.containerd.ctr("content", "rm", digest)
    wait_for(lambda: not holder.can_find(f"/v2/library/any/blobs/{digest}"), "the layer is gone")


@pytest.fixture(params=[pytest.param(each, marks=needs(each)) for each in PULLERS])
def puller(request: pytest.FixtureRequest, lab: Lab) -> Puller:
    return make_puller(lab, request.param, "client")


def make_puller(lab: Lab, name: str, host: str) -> Puller:
    directory = lab.directory / f"puller-{next(NUMBERS)}"
    mirror = lab.hosts[host].peili.local
    return Puller(name, lab.hosts[host].node, directory, lab.upstream.name, mirror)


def requests_to_upstream(lab: Lab, before: int) -> list[str]:
    """Return the paths of what was requested from the registry since the position `before` in its log."""
    return [each.path for each in lab.upstream.requests(before) if each.path != "/v2/"]


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_an_image_comes_from_a_peer(lab: Lab, puller: Puller, by: str) -> None:
    repository = f"{REGISTRY}/library/only-here"
    image = image_at_the_holder(lab, repository)
    before = lab.upstream.log_position()
    puller.pull(f"{repository}:v1" if by == "tag" else f"{repository}@{image.target.digest}")
    assert requests_to_upstream(lab, before) == []


def test_an_image_of_which_peers_lack_a_layer_comes_from_the_registry(lab: Lab, puller: Puller) -> None:
    """The client would not go to the registry for the one layer, so it must not get the manifest from peili."""
    published = lab.publish(f"library/incomplete-{next(NUMBERS)}", [200 * KIB, 300 * KIB])
    lab.hosts["holder"].containerd.pull(published.by_tag)
    wait_found_by_all(lab, published)
    remove_a_layer(lab, published.image)
    before = lab.upstream.log_position()
    puller.pull(f"{REGISTRY}/{published.repository}@{published.image.target.digest}")
    paths = requests_to_upstream(lab, before)
    assert {path.rpartition("/")[2] for path in paths} >= {each.digest for each in published.image.layers}


@needs("podman")
@pytest.mark.parametrize("by", ["tag", "digest"])
def test_with_defer_a_tag_comes_from_the_registry_and_a_digest_from_a_peer(lab: Lab, by: str) -> None:
    published = lab.publish(f"library/deferred-{next(NUMBERS)}", [200 * KIB])
    lab.hosts["holder"].containerd.pull(published.by_tag)
    wait_found_by_all(lab, published)
    before = lab.upstream.log_position()
    suffix = ":v1" if by == "tag" else f"@{published.image.target.digest}"
    make_puller(lab, "podman", "deferring").pull(f"{REGISTRY}/{published.repository}{suffix}")
    has_asked = any(published.image.layers[0].digest in each for each in requests_to_upstream(lab, before))
    assert has_asked == (by == "tag")


@needs("dockerd", "docker")
@pytest.mark.parametrize("by", ["tag", "digest"])
def test_docker_gets_an_image_of_docker_hub_from_a_peer(lab: Lab, docker: Docker, by: str) -> None:
    repository = f"library/docker-{next(NUMBERS)}"
    image = image_at_the_holder(lab, f"docker.io/{repository}")
    docker.run("pull", f"{repository}:v1" if by == "tag" else f"{repository}@{image.target.digest}")


@needs("dockerd", "docker")
def test_buildkit_in_docker_gets_the_base_of_a_build_from_a_peer(lab: Lab, docker: Docker, tmp_path: Path) -> None:
    repository = f"library/base-{next(NUMBERS)}"
    image_at_the_holder(lab, f"docker.io/{repository}")
    (tmp_path / "Dockerfile").write_text(f"FROM {repository}:v1\nCOPY Dockerfile /\n")
    docker.run("build", "--quiet", "--tag=built", str(tmp_path), buildkit=True)
    assert "COPY Dockerfile" in docker.run("image", "history", "--no-trunc", "built")


@needs("dockerd", "docker")
def test_docker_does_not_wait_for_a_layer_that_no_peer_has(lab: Lab, docker: Docker) -> None:
    repository = f"library/docker-{next(NUMBERS)}"
    image_at_the_holder(lab, f"docker.io/{repository}", without_a_layer=True)
    with pytest.raises(CommandFailed, match=r"registry-1\.docker\.io"):  # which can't be reached from here
        docker.run("pull", f"{repository}:v1")
