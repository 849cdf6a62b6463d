"""The laboratory does what the end-to-end tests rely on. peili does not run in these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.lab.authentication import Credentials, Htpasswd
from tests.lab.containerd import Containerd
from tests.lab.lab import Lab, missing_commands
from tests.lab.namespaces import NamespaceNode
from tests.lab.network import REGISTRY_PORT
from tests.lab.processes import CommandFailed, run, wait_for
from tests.lab.releases import RELEASE_NAMES, each_release, release
from tests.lab.token_server import EXPIRED, TokenServer, User
from tests.lab.upstream import Published, Upstream

pytestmark = pytest.mark.skipif(bool(missing_commands()), reason=f"not installed: {' '.join(missing_commands())}")

MIB = 1 << 20
REFUSAL = "401|403|authorization failed"


@pytest.fixture(scope="module")
def lab() -> Generator[Lab]:
    with Lab("a", "b") as lab:
        yield lab


@pytest.mark.parametrize("name", each_release(*RELEASE_NAMES))
def test_a_release_has_the_version_of_its_name(name: str) -> None:
    output = run([release(name).program("containerd"), "--version"]).decode()
    prefix = {"trixie": "1.7.", "forky": "2.", "installed": ""}.get(name, name)
    assert output.split()[2].removeprefix("v").startswith(prefix)


def test_a_pull_without_a_mirror_comes_from_upstream_and_is_counted(lab: Lab) -> None:
    a = lab.hosts["a"].containerd
    image = lab.publish("library/plain", [20_000, 30_000])
    before = lab.upstream.log_position()
    a.pull(image.by_tag)
    assert a.image_names() >= {image.by_tag}
    assert a.digests() >= {blob.digest for blob in image.image.blobs}
    config = image.image.config.digest
    content = image.image.blob_path(config).read_bytes()
    assert a.ctr("content", "get", config).encode() == a.blob_path(config).read_bytes() == content
    assert sorted(path.rpartition("/")[2] for path in lab.upstream.blobs_sent(before)) == sorted(
        blob.digest for blob in (image.image.config, *image.image.layers)
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="containerd's CRI plug-in needs root")
@pytest.mark.parametrize("name", each_release(*RELEASE_NAMES))
def test_a_cri_pull_uses_hosts_toml_and_the_namespace_of_kubernetes(lab: Lab, private: Upstream, name: str) -> None:
    image, secret = lab.publish("library/pod", [20_000]), lab.publish("team/pod", [20_000], to=private)
    node, directory = lab.hosts["a"].node, lab.directory / f"pods-{name}"
    containerd = Containerd(node, directory, unpack=True, with_cri=True, release=release(name))
    try:
        containerd.start()
        containerd.set_mirrors(lab.upstream.name)
        before = lab.upstream.log_position()
        containerd.cri_pull(image.by_digest)
        assert len(lab.upstream.blobs_sent(before)) == 2
        assert containerd.image_names() >= {image.by_digest}
        assert containerd.digests() >= {blob.digest for blob in image.image.blobs}
        with pytest.raises(CommandFailed, match="NOT_FOUND"):
            containerd.cri_pull(f"{lab.upstream.name}/library/nothing:v1")
        containerd.set_mirrors(private.name)
        containerd.cri_pull(secret.by_digest, Credentials("alice", "secret"))
        with pytest.raises(CommandFailed, match=REFUSAL):
            containerd.cri_pull(secret.by_tag, Credentials("alice", "wrong"))
    finally:
        containerd.stop()


def test_hosts_do_not_share_content(lab: Lab) -> None:
    image = lab.publish("library/own", [20_000])
    lab.hosts["a"].containerd.pull(image.by_digest)
    assert not lab.hosts["b"].containerd.digests() & {blob.digest for blob in image.image.blobs}


def test_pulls_fail_while_the_registry_is_stopped_and_its_content_survives(lab: Lab) -> None:
    image = lab.publish("library/kept", [20_000])
    lab.upstream.stop()
    with pytest.raises(CommandFailed, match="refused"):
        lab.hosts["b"].containerd.pull(image.by_tag)
    lab.upstream.start()
    lab.hosts["b"].containerd.pull(image.by_tag)


def test_containerd_keeps_its_content_over_a_restart(lab: Lab) -> None:
    b = lab.hosts["b"].containerd
    image = lab.publish("library/restart", [20_000])
    b.pull(image.by_tag)
    b.stop()
    b.start()
    assert image.by_tag in b.image_names()


def test_a_frozen_pull_is_stopped_in_the_middle_of_a_layer(lab: Lab) -> None:
    b = lab.hosts["b"].containerd
    node = lab.upstream.node
    if isinstance(node, NamespaceNode):
        node.limit_rate("40mbit")  # so that half of the layer does not arrive while this process stands still
    image = lab.publish("library/frozen", [64 * MIB])
    [layer] = image.image.layers
    pull = b.start_pull_and_freeze(image.by_tag, layer)
    assert layer.digest not in b.digests()
    if isinstance(node, NamespaceNode):
        node.limit_rate("10gbit")
    pull.resume()
    pull.succeed()
    assert b.received_bytes(layer.digest) == 0
    assert layer.digest in b.digests()


def test_a_node_with_a_limited_rate_delays_packets(lab: Lab) -> None:
    node = lab.upstream.node
    if not isinstance(node, NamespaceNode):
        pytest.skip("the rate of loopback can't be limited")
    node.limit_rate("20mbit")
    before = node.delayed_packets()
    image = lab.publish("library/slow", [2 * MIB])
    lab.hosts["b"].containerd.pull(image.by_tag)
    assert node.delayed_packets() > before


@pytest.fixture(scope="module")
def tokens(lab: Lab) -> TokenServer:
    return lab.add_token_server({"alice": User("secret", ["team/*"])}, public=["public/*"])


@pytest.fixture(scope="module")
def private(lab: Lab, tokens: TokenServer) -> Upstream:
    return lab.add_upstream("private", tokens)


def pull_as(lab: Lab, image: Published, user: str | None) -> None:
    """Pull to the host `a` without a mirror, with or without `user:password`."""
    containerd = lab.hosts["a"].containerd
    containerd.set_mirrors(image.registry)
    containerd.pull(image.by_digest, *([] if user is None else ["--user", user]))


@pytest.mark.parametrize(
    ("repository", "user"), [("team/app", "alice:secret"), ("public/app", "alice:secret"), ("public/app", None)]
)
def test_a_user_pulls_with_tokens(
    lab: Lab, tokens: TokenServer, private: Upstream, repository: str, user: str | None
) -> None:
    image = lab.publish(repository, [20_000], to=private)
    before = len(tokens.issued)
    pull_as(lab, image, user)
    assert {each.user for each in tokens.issued[before:]} == {user and "alice"}
    assert all(each.granted == (f"repository:{repository}:pull",) for each in tokens.issued[before:])


@pytest.mark.parametrize(
    ("repository", "user"),
    [
        ("team/app", "alice:wrong"),
        ("team/app", "nobody:secret"),
        ("team/app", None),
        ("other/app", "alice:secret"),
    ],
)
def test_a_user_without_rights_gets_no_token_that_is_good_for_anything(
    lab: Lab, tokens: TokenServer, private: Upstream, repository: str, user: str | None
) -> None:
    image = lab.publish(repository, [20_000], to=private)
    before = len(tokens.issued)
    with pytest.raises(CommandFailed, match=REFUSAL):
        pull_as(lab, image, user)
    assert not any(each.granted for each in tokens.issued[before:])


def test_a_token_server_issues_expired_tokens_and_can_be_stopped(
    lab: Lab, tokens: TokenServer, private: Upstream
) -> None:
    image = lab.publish("team/tokens", [20_000], to=private)
    try:
        tokens.lifetime = EXPIRED
        with pytest.raises(CommandFailed, match=REFUSAL):
            pull_as(lab, image, "alice:secret")
        tokens.lifetime = 300
        tokens.stop()
        with pytest.raises(CommandFailed, match="refused"):
            pull_as(lab, image, "alice:secret")
    finally:
        tokens.lifetime = 300
        tokens.start()
    pull_as(lab, image, "alice:secret")


def test_a_registry_with_htpasswd_challenges_with_basic(lab: Lab) -> None:
    passwords = Htpasswd(lab.directory)
    registry = lab.add_upstream("basic", passwords)
    image = lab.publish("team/app", [20_000], to=registry)
    answer = registry.node.request("GET", registry.node.address, registry.node.port(REGISTRY_PORT), "/v2/")
    assert answer.headers["Www-Authenticate"].startswith("Basic ")
    for wrong in (None, "publisher:wrong"):
        with pytest.raises(CommandFailed, match=REFUSAL):
            pull_as(lab, image, wrong)
    pull_as(lab, image, str(passwords.publisher))


def test_a_killed_run_leaves_no_process_and_the_next_run_removes_its_files(tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"""
from pathlib import Path
from tests.lab.lab import Lab
with Lab() as lab:
    started = Path({str(started)!r})
    started.with_suffix(".new").write_text(f"{{lab.upstream.process.pid}}\\n{{lab.directory}}")
    started.with_suffix(".new").rename(started)
    lab.upstream.process.wait(300)
"""
    run = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    wait_for(started.exists, "the laboratory has started")
    run.kill()
    run.wait()
    pid, directory = started.read_text().split()
    wait_for(lambda: not Path("/proc", pid).exists(), "its registry is gone")
    with Lab():
        assert not Path(directory).exists()
        assert not list(Path("/run/netns").glob(f"peili-lab-{run.pid}-*"))
