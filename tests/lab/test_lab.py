"""The laboratory does what the end-to-end tests rely on. peili does not run in these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.lab.containerd import Containerd
from tests.lab.lab import Lab, missing_commands
from tests.lab.namespaces import NamespaceNode
from tests.lab.processes import CommandFailed, run, wait_for
from tests.lab.releases import RELEASE_NAMES, each_release, release

pytestmark = pytest.mark.skipif(bool(missing_commands()), reason=f"not installed: {' '.join(missing_commands())}")

MIB = 1 << 20


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
    assert a.read(image.image.config.digest) == image.image.blob_path(image.image.config.digest).read_bytes()
    assert sorted(path.rpartition("/")[2] for path in lab.upstream.blobs_sent(before)) == sorted(
        blob.digest for blob in (image.image.config, *image.image.layers)
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="containerd's CRI plug-in needs root")
@pytest.mark.parametrize("name", each_release(*RELEASE_NAMES))
def test_a_cri_pull_uses_hosts_toml_and_the_namespace_of_kubernetes(lab: Lab, name: str) -> None:
    image = lab.publish("library/pod", [20_000])
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
    image = lab.publish("library/frozen", [64 * MIB])
    [layer] = image.image.layers
    pull = b.start_pull_and_freeze(image.by_tag, layer)
    assert layer.digest not in b.digests()
    pull.resume()
    pull.succeed()
    assert b.received_bytes(layer.digest) == 0
    assert layer.digest in b.digests()


def test_a_node_with_a_limited_rate_delays_packets(lab: Lab) -> None:
    node = lab.upstream.node
    if not isinstance(node, NamespaceNode):
        pytest.skip("the rate of loopback can't be limited")
    node.limit_rate("80mbit")
    assert node.delayed_packets() == 0
    image = lab.publish("library/slow", [5 * MIB])
    lab.hosts["b"].containerd.pull(image.by_tag)
    assert node.delayed_packets() > 0


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
