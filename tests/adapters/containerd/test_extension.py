"""`ContainerdHosts` puts peili in front of containerd's registries while the mirror runs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tests.support.trees import make_tree, snapshot

from peili.adapters.containerd import ContainerdHosts, HostsFiles
from peili.mirror import Limits, Mirror, serve
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

MIRROR = "http://127.0.0.1:5050"
LONG_TIMEOUTS = Limits(start_timeout=60, stop_timeout=60)  # other tests keep the disk busy
MIRRORED = b"server = 'https://s.example'\n[host.'https://m.example']\n"


def in_front(root: Path) -> list[bool]:
    return [each.is_first for each in HostsFiles(MIRROR, config_path=[root]).show()]


async def test_it_applies_at_start_and_removes_before_the_doors_close(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "peili")
    root = tmp_path / "certs.d"
    make_tree(root, {"docker.io/hosts.toml": MIRRORED})
    original = snapshot(tmp_path)
    extension = ContainerdHosts(HostsFiles(MIRROR, config_path=[root]), socket=tmp_path / "nobody.sock")
    mirror = Mirror(MemoryStore(), MemoryRouter(), extensions=[extension], limits=LONG_TIMEOUTS)
    for _ in range(2):
        async with mirror, serve(mirror, local="127.0.0.1:0"):
            assert in_front(root) == [True, True]
            assert mirror.readiness()["ContainerdHosts"]
            await mirror.drain(0.1)
            assert snapshot(tmp_path) == original
        assert snapshot(tmp_path) == original
    messages = [each.getMessage() for each in caplog.records if each.name == "peili.ContainerdHosts"]
    changed, default = root / "docker.io/hosts.toml", root / "_default/hosts.toml"
    assert messages == 2 * [f"changed {changed}", f"created {default}", f"changed {changed}", f"removed {default}"]


async def test_a_file_that_cannot_be_changed_is_logged_and_the_mirror_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_tree(tmp_path, {"docker.io/hosts.toml": b"server = "})
    extension = ContainerdHosts(HostsFiles(MIRROR, config_path=[tmp_path]))
    async with Mirror(MemoryStore(), MemoryRouter(), extensions=[extension], limits=LONG_TIMEOUTS) as mirror:
        assert mirror.ready()
        assert not mirror.readiness()["ContainerdHosts"]
        (warning,) = [each.getMessage() for each in caplog.records]
        assert warning.startswith(
            f"{tmp_path}/docker.io/hosts.toml: not changed: peili cannot tell how containerd reads it: not TOML"
        )
        assert (tmp_path / "_default/hosts.toml").exists()
    assert not (tmp_path / "_default").exists()


async def test_the_next_run_takes_over_what_a_killed_run_left(tmp_path: Path) -> None:
    HostsFiles("http://127.0.0.1:1", config_path=[tmp_path]).apply()
    chosen = HostsFiles(MIRROR, config_path=[tmp_path], registries=["docker.io"])
    async with Mirror(MemoryStore(), MemoryRouter(), extensions=[ContainerdHosts(chosen)], limits=LONG_TIMEOUTS):
        assert in_front(tmp_path) == [True, False]
    assert list(snapshot(tmp_path)) == ["."]
