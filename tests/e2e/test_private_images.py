"""Real clients pull private images by tag and by digest. With peili, each pull ends as it does without.

The peili of the clients asks the registry what tags mean.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count

import pytest
from tests.e2e.checks import KIB
from tests.e2e.private_pulls import (
    BASIC_REGISTRY,
    OTHER,
    RIGHT,
    WRONG,
    Client,
    Runtime,
    Scene,
    Tool,
    as_options,
    cost,
)
from tests.lab.authentication import Credentials
from tests.lab.containerd import Containerd
from tests.lab.lab import Lab, make_network
from tests.lab.releases import release
from tests.lab.token_server import EXPIRED
from tests.lab.upstream import Published

RELEASES = {"1.6": "installed", "1.7": "trixie", "2": "forky"}
RUNTIMES = [f"{client} {name}" for name in RELEASES for client in ("ctr", "cri")]
ONE_OF_EACH = ["ctr 1.6", "cri 1.7", "cri 2"]
"""For cases in which ctr and the CRI plug-in do not differ: both use the same code of containerd."""
TOOLS = ["podman", "skopeo"]
NUMBERS = count(1)


@dataclass(frozen=True)
class Private:
    """What the tests of this module share.

    Attributes:
        scene: The registry and the hosts `holder`, which has the images, and `puller`, which has the clients.
        clients: The clients by name.
        image: A private image. The containerd of the holder has this and all other images.
        basic_image: An image of the registry that challenges with Basic.
        large: Two images of 20 layers each. The first one is private.
    """

    scene: Scene
    clients: Mapping[str, Client]
    image: Published
    basic_image: Published
    large: Sequence[Published]


@pytest.fixture(scope="module")
def private() -> Generator[Private]:
    with make_network() as network:
        if not network.privileged:
            pytest.skip("containerd's CRI plug-in needs root")
    with Lab("holder", "puller", access="key") as lab, ExitStack() as stack:
        scene = Scene.set_up(lab)
        scene.start_peili("holder")
        scene.start_peili("puller", resolver={"kind": "upstream", "tag_ttl": 0.01})
        image = lab.publish("team/app", [200 * KIB, 20 * KIB], to=scene.private)
        basic = lab.publish("team/app", [200 * KIB], to=scene.basic)
        large = [lab.publish(f"{team}/large", [4 * KIB] * 20, to=scene.private) for team in ("team", "public")]
        for each in (image, *large):
            lab.hosts["holder"].containerd.pull(each.by_tag, *as_options(RIGHT))
        lab.hosts["holder"].containerd.pull(basic.by_tag, *as_options(scene.basic.publisher))
        scene.wait_given(lab.hosts["puller"], image, RIGHT)
        scene.wait_given(lab.hosts["puller"], basic, scene.basic.publisher)
        yield Private(scene, start_clients(scene, stack), image, basic, large)


def start_clients(scene: Scene, stack: ExitStack) -> Mapping[str, Client]:
    """Start a containerd of each release on the host `puller`."""
    puller = scene.lab.hosts["puller"]
    clients: dict[str, Client] = {name: Tool(name, puller, scene.private, scene.lab) for name in TOOLS}
    basic = {f"{name} basic": Tool(name, puller, scene.basic, scene.lab, BASIC_REGISTRY) for name in TOOLS}
    clients.update(basic)
    runtimes: list[Containerd] = []
    for name, installed in RELEASES.items():
        directory = scene.lab.directory / f"containerd-{name}"
        containerd = Containerd(puller.node, directory, unpack=True, with_cri=True, release=release(installed))
        stack.callback(containerd.stop)
        containerd.launch()
        runtimes.append(containerd)
        for client in ("ctr", "cri"):
            clients[f"{client} {name}"] = Runtime(containerd, f"http://{puller.peili.local}", cri=client == "cri")
    for containerd in runtimes:
        containerd.wait_ready()
    return clients


@pytest.mark.parametrize("name", [*RUNTIMES, *TOOLS])
@pytest.mark.parametrize("credentials", [WRONG, None, OTHER], ids=["wrong secret", "no secret", "another's secret"])
def test_a_client_without_rights_gets_nothing_as_without_peili(
    private: Private, name: str, credentials: Credentials | None
) -> None:
    for peili in (True, False):
        outcome = private.clients[name].pull(private.image, credentials, peili=peili)
        assert not outcome.succeeded
        assert_has_nothing(private.clients[name], private.image)


@pytest.mark.parametrize("name", RUNTIMES)
def test_containerd_with_the_right_secret_gets_the_layers_from_a_peer(private: Private, name: str) -> None:
    upstream, client = private.scene.private, private.clients[name]
    assert client.pull(private.image, RIGHT, peili=False).succeeded
    before = upstream.log_position()
    for tag in (True, False):
        outcome = client.pull(private.image, RIGHT, tag=tag, peili=True)
        assert outcome.succeeded, outcome.why
    assert not upstream.blobs_sent(before)


@pytest.mark.parametrize("name", RUNTIMES)
def test_containerd_notes_from_which_registry_it_has_fetched_each_blob(private: Private, name: str) -> None:
    """The store relies on this. What is imported has no such label."""
    client = private.clients[name]
    assert isinstance(client, Runtime)
    for peili in (True, False):
        outcome = client.pull(private.image, RIGHT, tag=True, peili=peili)
        assert outcome.succeeded, outcome.why
        assert {blob.digest for blob in private.image.image.blobs} <= client.containerd.fetched_digests()


@pytest.mark.parametrize("name", TOOLS)
def test_podman_and_skopeo_with_the_right_secret_get_the_image_as_without_peili(private: Private, name: str) -> None:
    for peili in (True, False):
        outcome = private.clients[name].pull(private.image, RIGHT, peili=peili)
        assert outcome.succeeded, outcome.why


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_client_whose_first_token_has_expired_gets_the_image_as_without_peili(private: Private, name: str) -> None:
    for peili in (True, False):
        private.scene.tokens.next_lifetimes = [EXPIRED]
        outcome = private.clients[name].pull(private.image, RIGHT, peili=peili)
        assert outcome.succeeded, outcome.why
        assert not private.scene.tokens.next_lifetimes


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_client_that_gets_only_expired_tokens_gets_nothing_as_without_peili(private: Private, name: str) -> None:
    try:
        private.scene.tokens.lifetime = EXPIRED
        for peili in (True, False):
            assert not private.clients[name].pull(private.image, RIGHT, peili=peili).succeeded
            assert_has_nothing(private.clients[name], private.image)
    finally:
        private.scene.tokens.lifetime = 300


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_registry_with_htpasswd_is_served_to_those_who_know_the_password(private: Private, name: str) -> None:
    client, registry = private.clients[name], private.scene.basic
    for wrong in (None, Credentials(registry.publisher.user, "wrong")):
        for peili in (True, False):
            assert not client.pull(private.basic_image, wrong, peili=peili).succeeded
            assert_has_nothing(client, private.basic_image)
    before = registry.log_position()
    outcome = client.pull(private.basic_image, registry.publisher, peili=True)
    assert outcome.succeeded, outcome.why
    assert not registry.blobs_sent(before)


@pytest.mark.parametrize("name", TOOLS)
def test_podman_and_skopeo_get_the_image_of_a_registry_with_htpasswd_as_without_peili(
    private: Private, name: str
) -> None:
    client, right = private.clients[f"{name} basic"], private.scene.basic.publisher
    for credentials in (right, Credentials(right.user, "wrong"), None):
        for peili in (True, False):
            outcome = client.pull(private.basic_image, credentials, peili=peili)
            assert outcome.succeeded is (credentials == right), outcome.why


@pytest.mark.parametrize("name", [*ONE_OF_EACH, *TOOLS])
def test_the_next_pull_gets_what_a_tag_means_now(private: Private, name: str) -> None:
    """The holder has what it meant before."""
    scene, client = private.scene, private.clients[name]
    repository = f"{'public' if name in TOOLS else 'team'}/moved-{next(NUMBERS)}"
    old = publish(scene, repository)
    assert client.pull(old, RIGHT, tag=True, peili=True).succeeded
    new = scene.lab.publish(repository, [20 * KIB], to=scene.private)
    before = scene.private.log_position()
    outcome = client.pull(new, RIGHT, tag=True, peili=True)
    assert outcome.succeeded, outcome.why
    assert any(new.image.layers[0].digest in path for path in scene.private.blobs_sent(before))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_while_the_registry_is_down_a_public_tag_means_what_it_meant_last(private: Private, name: str) -> None:
    scene, client = private.scene, private.clients[name]
    image, secret = publish(scene, f"public/{next(NUMBERS)}"), publish(scene, f"team/{next(NUMBERS)}")
    for each in (image, secret):
        assert client.pull(each, RIGHT, tag=True, peili=True).succeeded
    try:
        scene.private.stop()
        outcome = client.pull(image, None, tag=True, peili=True)
        assert outcome.succeeded, outcome.why
        assert not client.pull(secret, RIGHT, tag=True, peili=True).succeeded
        answer = scene.lab.hosts["puller"].peili.request("HEAD", image.tag_url)
        assert answer.headers["docker-content-digest"] == image.image.target.digest
        assert answer.headers["warning"].startswith("110 ")
    finally:
        scene.private.start()
    scene.wait_given(scene.lab.hosts["puller"], secret, RIGHT)  # as before


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_covered_pull_costs_at_most_two_tokens_and_two_requests_more(private: Private, name: str) -> None:
    covered, open_to_all = (cost(private.scene, private.clients[name], each) for each in private.large)
    assert covered.tokens - open_to_all.tokens <= 2
    assert covered.requests - open_to_all.requests <= 2


def publish(scene: Scene, repository: str) -> Published:
    """Push a small image, and pull it on the holder."""
    image = scene.lab.publish(repository, [20 * KIB], to=scene.private)
    scene.lab.hosts["holder"].containerd.pull(image.by_tag, *as_options(RIGHT))
    return image


def assert_has_nothing(client: Client, image: Published) -> None:
    """Check that a containerd has no blob of an image. The failed pulls of others are not looked at."""
    if isinstance(client, Runtime):
        assert not client.containerd.digests() & {blob.digest for blob in image.image.blobs}
        assert not any(client.containerd.received_bytes(blob.digest) for blob in image.image.blobs)
