"""The one switch: peili is in front of containerd's registries while the mirror runs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tests.adapters.containerd.trees import make, snapshot

from peili.adapters.containerd import ContainerdHosts, HostsFiles
from peili.mirror import Limits, Mirror, serve
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

MIRROR = "http://127.0.0.1:5050"
PATIENT = Limits(start_timeout=60, stop_timeout=60)  # other tests keep the disk busy
MIRRORED = b"server = 'https://s.example'\n[host.'https://m.example']\n"


def in_front(root: Path) -> list[bool]:
    return [each.is_first for each in HostsFiles(MIRROR, config_path=[root]).show()]


async def test_on_at_start_and_off_before_the_doors_close(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "peili")
    root = tmp_path / "certs.d"
    make(root, {"docker.io/hosts.toml": MIRRORED})
    was = snapshot(tmp_path)
    extension = ContainerdHosts(HostsFiles(MIRROR, config_path=[root]), socket=tmp_path / "nobody.sock")
    mirror = Mirror(MemoryStore(), MemoryRouter(), extensions=[extension], limits=PATIENT)
    for _ in range(2):
        async with mirror, serve(mirror, local="127.0.0.1:0"):
            assert in_front(root) == [True, True]
            assert mirror.readiness()["ContainerdHosts"]
            await mirror.drain(0.1)
            assert snapshot(tmp_path) == was
        assert snapshot(tmp_path) == was
    messages = [each.getMessage() for each in caplog.records if each.name == "peili.ContainerdHosts"]
    changed, default = root / "docker.io/hosts.toml", root / "_default/hosts.toml"
    assert messages == 2 * [f"changed {changed}", f"created {default}", f"changed {changed}", f"removed {default}"]


async def test_what_can_not_be_changed_is_logged_and_the_host_lives_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, {"docker.io/hosts.toml": b"server = "})
    extension = ContainerdHosts(HostsFiles(MIRROR, config_path=[tmp_path]))
    async with Mirror(MemoryStore(), MemoryRouter(), extensions=[extension], limits=PATIENT) as mirror:
        assert mirror.ready()
        assert not mirror.readiness()["ContainerdHosts"]
        (warning,) = [each.getMessage() for each in caplog.records]
        assert warning.startswith(
            f"{tmp_path}/docker.io/hosts.toml: not changed: peili cannot tell how containerd reads it: not TOML"
        )
        assert (tmp_path / "_default/hosts.toml").exists()
    assert not (tmp_path / "_default").exists()


async def test_what_a_killed_host_has_left_is_taken_over_by_the_next(tmp_path: Path) -> None:
    HostsFiles("http://127.0.0.1:1", config_path=[tmp_path]).apply()
    chosen = HostsFiles(MIRROR, config_path=[tmp_path], registries=["docker.io"])
    async with Mirror(MemoryStore(), MemoryRouter(), extensions=[ContainerdHosts(chosen)], limits=PATIENT):
        assert in_front(tmp_path) == [True, False]
    assert list(snapshot(tmp_path)) == ["."]
