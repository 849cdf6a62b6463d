"""Who gets the content of private images: whatever the order of pulls, under every name, and while upstream is down."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count

import pytest
from tests.e2e.checks import KIB, MIB, assert_has, repeat_until_shared, wait_found
from tests.e2e.private_pulls import OTHER, RIGHT, WRONG, Cost, Runtime, Scene, Tool, as_options, cost
from tests.lab.authentication import Credentials
from tests.lab.lab import GENEROUS_LIMITS, Host, Lab
from tests.lab.namespaces import NamespaceNode
from tests.lab.processes import Process, wait_for
from tests.lab.releases import each_release, release
from tests.lab.token_server import EXPIRED
from tests.lab.upstream import Published

from peili.mirror.testing.images import make_layout

GRANTED, REMEMBERING, OUTSIDER = ("first", "second"), "remembering", "outsider"
NUMBERS = count(1)


@pytest.fixture(scope="module", params=each_release("forky"))
def scene(request: pytest.FixtureRequest) -> Generator[Scene]:
    """All hosts know the key of the peer doors. `remembering` serves what it was granted while upstream is down."""
    with Lab(*GRANTED, REMEMBERING, OUTSIDER, release=release(request.param), access="key") as lab:
        scene = Scene.set_up(lab)
        scene.start_peili(*GRANTED, OUTSIDER)
        scene.start_peili(REMEMBERING, authorize_outage="remembered")
        yield scene


KINDS = ["registry is down", "token server is down, too", "registry hangs"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, scene: Scene) -> Generator[str]:
    """How upstream is down. While the registry hangs, each question takes as long as it may: then not for long."""
    kind: str = request.param
    if kind == "registry hangs":
        restart(scene, {**GENEROUS_LIMITS, "upstream_timeout": 1.5})
    yield kind
    if kind == "registry hangs":
        restart(scene, GENEROUS_LIMITS)


def restart(scene: Scene, limits: Mapping[str, float]) -> None:
    """Start peili again on the hosts that ask the registry during an outage."""
    for name in ("second", REMEMBERING):
        scene.lab.hosts[name].peili.stop()
    scene.start_peili("second", limits=limits)
    scene.start_peili(REMEMBERING, authorize_outage="remembered", limits=limits)


@pytest.fixture(scope="module")
def shared(scene: Scene) -> tuple[Published, Published]:
    """A public and a private image, which share their first layer. The host `first` has both."""
    directory = scene.lab.directory
    public = make_layout(directory / "public", layers=[100 * KIB], tags=["v1"], seed="shared")
    private = make_layout(directory / "private", layers=[100 * KIB, 200 * KIB], tags=["v1"], seed="shared")
    published = scene.private.push(public, "public/shared"), scene.private.push(private, "team/shared")
    for each in published:
        scene.lab.hosts["first"].containerd.pull(each.by_digest, *as_options(RIGHT))
    return published


def publish(scene: Scene, layers: Sequence[int], team: str = "team") -> Published:
    return scene.lab.publish(f"{team}/app-{next(NUMBERS)}", layers, to=scene.private)


def start_pull(host: Host, image: Published, credentials: Credentials | None) -> Process:
    return host.containerd.start_pull(image.by_digest, *as_options(credentials))


def can_pull(host: Host, image: Published, credentials: Credentials | None) -> bool:
    """Pull an image that the host does not have, or no longer, and return whether it has it then."""
    if image.by_digest in host.containerd.image_names():
        host.containerd.remove(image.by_digest)
    if start_pull(host, image, credentials).wait():
        assert_has_nothing(host, image)
        return False
    assert_has(host, image.image)
    return True


def assert_has_nothing(host: Host, image: Published) -> None:
    assert not host.containerd.digests() & {blob.digest for blob in image.image.blobs}
    assert not any(host.containerd.received_bytes(blob.digest) for blob in image.image.blobs)


@pytest.mark.parametrize(
    ("order", "secret"),
    [
        pytest.param((OUTSIDER, *GRANTED), None, id="first"),
        pytest.param((GRANTED[0], OUTSIDER, GRANTED[1]), WRONG, id="second"),
        pytest.param((*GRANTED, OUTSIDER), OTHER, id="last"),
    ],
)
def test_in_a_cold_start_only_hosts_with_the_secret_get_the_image(
    scene: Scene, order: Sequence[str], secret: Credentials | None
) -> None:
    def pull_once() -> float:
        """Let the hosts pull a new image, and return how many copies the registry has sent."""
        hosts, image = scene.lab.hosts, publish(scene, [3 * MIB, 100 * KIB])
        layer, before = image.image.layers[0].digest, scene.private.log_position()
        pulls: dict[str, Process] = {}
        for name in order:
            pulls[name] = pull = start_pull(hosts[name], image, secret if name == OUTSIDER else RIGHT)
            wait_for(partial(_has_begun, hosts[name], pull, layer), f"the pull on {name} has begun", pause=0.005)
        assert pulls[OUTSIDER].wait() != 0
        for name in GRANTED:
            pulls[name].succeed()
            assert_has(hosts[name], image.image)
        assert_has_nothing(hosts[OUTSIDER], image)
        return copies(scene, image, before)

    limit_registry(scene)
    repeat_until_shared(pull_once, most_copies=1.1)


def test_in_a_cold_start_a_public_image_comes_from_the_registry_once(scene: Scene) -> None:
    """Hosts need no right to share what is still arriving for everybody, although others is covered."""

    def pull_once() -> float:
        """Let the hosts pull a new image, and return how many copies the registry has sent."""
        hosts = [scene.lab.hosts[name] for name in (*GRANTED, OUTSIDER)]
        image = publish(scene, [3 * MIB, 100 * KIB], "public")
        layer, before = image.image.layers[0].digest, scene.private.log_position()
        pulls: list[Process] = []
        for host in hosts:
            pulls.append(start_pull(host, image, None))
            wait_for(partial(_has_begun, host, pulls[-1], layer), f"the pull on {host.name} has begun", pause=0.005)
        for host, pull in zip(hosts, pulls, strict=True):
            pull.succeed()
            assert_has(host, image.image)
        return copies(scene, image, before)

    limit_registry(scene)
    repeat_until_shared(pull_once, most_copies=1.1)


def limit_registry(scene: Scene) -> None:
    """Limit the rate of the registry, so that the pulls of a test overlap."""
    if not isinstance(scene.private.node, NamespaceNode):
        pytest.skip("the rate of loopback can't be limited, so a layer would arrive at once")
    scene.private.node.limit_link("80mbit")


def copies(scene: Scene, image: Published, since: int) -> float:
    """Return how many copies of an image the registry has sent since a position in its log."""
    return scene.private.bytes_sent(since) / sum(blob.size for blob in image.image.blobs)


def _has_begun(host: Host, pull: Process, digest: str) -> bool:
    return not pull.is_running or host.containerd.received_bytes(digest) > 0


@pytest.mark.parametrize("name", ["first", OUTSIDER], ids=["a host that has it", "a host that has it not"])
def test_a_host_gives_private_content_only_to_requests_with_the_right_token(
    scene: Scene, shared: tuple[Published, Published], name: str
) -> None:
    host, [_, private] = scene.lab.hosts[name], shared
    for digest in (private.image.layers[1].digest, private.image.target.digest):
        ask = partial(scene.request, host, private, digest)
        answer = ask()
        assert answer.status == 401
        challenge = answer.headers["www-authenticate"]
        assert scene.tokens.realm in challenge
        assert f"repository:{private.repository}:pull" in challenge
        assert ask(OTHER).status == 403
        try:
            scene.tokens.lifetime = EXPIRED
            assert ask(RIGHT).status == 401
        finally:
            scene.tokens.lifetime = 300
        wait_for(lambda ask=ask: ask(RIGHT).status == 200, f"{name} gives {digest}")  # type: ignore[misc]  # bound early


def test_a_private_tag_that_no_host_tells_costs_at_most_two_tokens_and_two_requests_more(scene: Scene) -> None:
    """The host leaves tags to the registry. So that nobody finds out what hosts know, it asks for rights also then."""
    host, costs = scene.lab.hosts[OUTSIDER], dict[str, Cost]()
    client = Runtime(host.containerd, f"http://{host.peili.local}", cri=False)
    for team in ("team", "public"):
        image = publish(scene, [4 * KIB] * 20, team)
        scene.lab.hosts["first"].containerd.pull(image.by_digest, *as_options(RIGHT))
        scene.wait_given(host, image, RIGHT)
        costs[team] = cost(scene, client, image)
    assert costs["team"].tokens - costs["public"].tokens <= 2
    assert costs["team"].requests - costs["public"].requests <= 2


@pytest.mark.parametrize("name", ["podman", "skopeo"])
def test_podman_and_skopeo_pull_a_private_tag_that_no_host_tells_as_without_peili(scene: Scene, name: str) -> None:
    image = publish(scene, [20 * KIB])
    client = Tool(name, scene.lab.hosts[OUTSIDER], scene.private, scene.lab)
    for credentials in (RIGHT, OTHER, None):
        for peili in (True, False):
            outcome = client.pull(image, credentials, tag=True, peili=peili)
            assert outcome.succeeded is (credentials == RIGHT), outcome.why


def test_a_private_layer_is_not_given_under_the_name_of_a_public_repository(
    scene: Scene, shared: tuple[Published, Published]
) -> None:
    public, private = shared
    common, secret = (layer.digest for layer in private.image.layers)
    for name in ("first", OUTSIDER):
        host = scene.lab.hosts[name]
        assert scene.request(host, public, secret).status in {401, 404}
        assert scene.request(host, public, secret, RIGHT).status == 404
        wait_for(partial(host.can_find, public.blob_url(common)), f"{name} finds the common layer")
        assert scene.request(host, private, common).status == 401
        assert scene.request(host, private, common, OTHER).status == 403


def test_an_image_that_is_public_too_is_given_to_everybody_under_that_name(scene: Scene) -> None:
    """The only holder knows it by its private name."""
    private = publish(scene, [200 * KIB])
    public = scene.private.push(private.image, "public/same")
    scene.lab.hosts["first"].containerd.pull(private.by_digest, *as_options(RIGHT))
    assert can_pull(scene.lab.hosts[OUTSIDER], public, None)


@contextmanager
def outage(scene: Scene, kind: str) -> Generator[None]:
    """Let the registry refuse connections or hang. The token server can be down, too."""
    try:
        if kind == "registry hangs":
            scene.private.process.freeze()
        else:
            scene.private.stop()
        if kind == "token server is down, too":
            scene.tokens.stop()
        yield
    finally:
        scene.private.process.resume() if kind == "registry hangs" else scene.private.start()
        scene.tokens.start()


def test_while_upstream_is_down_a_host_gets_only_what_it_was_granted_if_it_may_remember_that(
    scene: Scene, kind: str
) -> None:
    hosts = scene.lab.hosts
    granted, never_granted = publish(scene, [200 * KIB]), publish(scene, [200 * KIB])
    public = publish(scene, [200 * KIB], "public")
    for image in (granted, never_granted, public):
        hosts["first"].containerd.pull(image.by_digest, *as_options(RIGHT))
    for name in ("second", REMEMBERING):
        # A host needs seconds to notice that the outage before is over. Until then it has nothing granted to remember.
        scene.wait_given(hosts[name], granted, RIGHT)
        assert can_pull(hosts[name], granted, RIGHT)
    wait_found(hosts[OUTSIDER], public)
    with outage(scene, kind):
        # Until this host asks the registry again, after seconds, it demands a token, as without an outage.
        ask = partial(scene.request, hosts[REMEMBERING], granted, granted.image.target.digest)
        wait_for(lambda: ask().status == 200, "the host notices the outage")
        assert can_pull(hosts[REMEMBERING], granted, RIGHT)
        assert can_pull(hosts[OUTSIDER], public, None)
        for host, image in ((hosts["second"], granted), (hosts[REMEMBERING], never_granted)):
            for digest in (each.digest for each in image.image.layers):
                assert scene.request(host, image, digest).status != 200
                assert scene.request(host, image, digest, RIGHT).status != 200
            if kind != "registry hangs":  # then the runtime waits for it, as without peili
                assert not can_pull(host, image, RIGHT)
    wait_for(lambda: can_pull(hosts["second"], granted, RIGHT), "a pull from a peer", pause=0.3)
    assert not can_pull(hosts[OUTSIDER], granted, None)


def test_without_a_token_server_a_pull_ends_as_without_peili(scene: Scene) -> None:
    image = publish(scene, [200 * KIB])
    hosts = scene.lab.hosts
    hosts["first"].containerd.pull(image.by_digest, *as_options(RIGHT))
    try:
        scene.tokens.stop()
        assert not can_pull(hosts[OUTSIDER], image, RIGHT)
    finally:
        scene.tokens.start()
    assert can_pull(hosts[OUTSIDER], image, RIGHT)
