# One containerd for all tests of a session, and a new one for each test that stops or breaks it.
from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
from tests.lab.containerd import Containerd
from tests.lab.network import LoopbackNetwork
from tests.stores.containerd.helpers import ready
from tests.stores.containerd.namespace import Namespace, new_namespace
from tests.support.directories import short_directory

from peili.stores.containerd import ContainerdStore

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
def namespace(shared_containerd: Containerd, tmp_path: Path) -> Namespace:
    """A namespace of this test, in a containerd that other tests also use."""
    return new_namespace(shared_containerd, tmp_path)


@pytest.fixture
def own_namespace(own_containerd: Containerd, tmp_path: Path) -> Namespace:
    """The namespace of a test that has a containerd of its own."""
    return new_namespace(own_containerd, tmp_path)


@pytest.fixture
async def store(namespace: Namespace) -> AsyncGenerator[ContainerdStore]:
    """A store of `namespace`, which is ready."""
    store = namespace.store()
    async with ready(store):
        yield store
