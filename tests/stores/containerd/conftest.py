# One containerd for all tests of a session, and a new one for each test that stops or breaks it.
from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.lab.containerd import Containerd
from tests.lab.network import LoopbackNetwork
from tests.stores.containerd.tenant import Tenant, new_tenant
from tests.support.directories import short_directory

_COMMANDS = ("containerd", "ctr", "setpriv")


def _containerd() -> Generator[Containerd]:
    missing = [command for command in _COMMANDS if shutil.which(command, path=None) is None]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)}")
    with short_directory() as directory:
        containerd = Containerd(LoopbackNetwork().add_node("store"), directory / "c", unpack=False)
        try:
            containerd.start()
            yield containerd
        finally:
            containerd.stop()


shared_containerd = pytest.fixture(_containerd, scope="session")
own_containerd = pytest.fixture(_containerd)


@pytest.fixture
def tenant(shared_containerd: Containerd, tmp_path: Path) -> Tenant:
    """A namespace of this test only, in a containerd that other tests use, too."""
    return new_tenant(shared_containerd, tmp_path)


@pytest.fixture
def sole_tenant(own_containerd: Containerd, tmp_path: Path) -> Tenant:
    """A namespace of a containerd that no other test uses."""
    return new_tenant(own_containerd, tmp_path)
