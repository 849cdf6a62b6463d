"""containerd pulls by tag through the resolver ``upstream``, from a registry with tokens, and while that is down."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import pytest
from tests.e2e.checks import assert_has, wait_found
from tests.lab.lab import Lab
from tests.lab.processes import CommandFailed, wait_for
from tests.lab.token_server import TokenServer, User
from tests.lab.upstream import Upstream

SECRET = ("--user", "alice:secret")


@dataclass(frozen=True, slots=True)
class Scene:
    lab: Lab
    tokens: TokenServer
    private: Upstream

    def heads(self, since: int) -> Sequence[str]:
        """Return the paths of HEAD requests that got 200, after a position in the registry's log."""
        asked = self.private.requests(since)
        return [each.path for each in asked if each.method == "HEAD" and each.status == 200]


@pytest.fixture(scope="module")
def scene() -> Generator[Scene]:
    with Lab("a", "b") as lab:
        tokens = lab.add_token_server({"alice": User("secret", ["team/*"])})
        private = lab.add_upstream("private", tokens)
        resolver = {"kind": "upstream", "tag_ttl": 0.01}
        url = {private.name: {"url": f"http://{private.name}"}}
        lab.start_peili("a", resolver=resolver, upstream=url)
        # The other host finds the registry as its containerd does.
        lab.start_peili("b", resolver=resolver, hosts={"config_path": [str(lab.hosts["b"].containerd.hosts)]})
        yield Scene(lab, tokens, private)


def test_a_tag_means_what_the_registry_says_and_the_content_comes_from_a_peer(scene: Scene) -> None:
    a, b = scene.lab.hosts.values()
    old = scene.lab.publish("team/app", [200_000], to=scene.private)
    a.containerd.pull(old.by_tag, *SECRET)
    wait_found(b, old)
    position = scene.private.log_position()
    b.containerd.pull(old.by_tag, *SECRET)
    assert_has(b, old.image)
    assert len(scene.heads(position)) == 1
    assert not scene.private.blobs_sent(position)

    new = scene.lab.publish("team/app", [300_000], to=scene.private)
    a.containerd.pull(new.by_tag, *SECRET)
    b.containerd.pull(new.by_tag, *SECRET)
    assert_has(b, new.image)


def test_while_the_registry_and_its_token_server_are_down_pulls_go_on(scene: Scene) -> None:
    a, b = scene.lab.hosts.values()
    published = scene.lab.publish("team/outage", [200_000], to=scene.private)
    a.containerd.pull(published.by_tag, *SECRET)
    wait_found(b, published)
    wait_for(lambda: b.can_fetch_from(a, f"/_router/keys/{published.by_tag}"), "a knows what its image is called")
    scene.private.stop()
    scene.tokens.stop()
    try:
        b.containerd.pull(published.by_tag, *SECRET)
    finally:
        scene.tokens.start()
        scene.private.start()
    assert_has(b, published.image)
    wait_for(lambda: "answered with" in b.peili.log(), "the log says who answered instead of the registry")


def test_a_wrong_secret_fails_as_without_peili(scene: Scene) -> None:
    _, b = scene.lab.hosts.values()
    published = scene.lab.publish("team/wrong", [50_000], to=scene.private)
    with pytest.raises(CommandFailed):
        b.containerd.pull(published.by_tag, "--user", "alice:wrong")
