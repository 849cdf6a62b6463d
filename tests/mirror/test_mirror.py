"""How a mirror is built: what the constructor accepts and refuses."""

from __future__ import annotations

import pytest

from peili.mirror import ConfigError, Mirror, Peer
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore


def test_a_mirror_is_built_without_a_loop_and_refuses_wrong_values() -> None:
    assert isinstance(Mirror(MemoryStore(), MemoryRouter()).identity, Peer)
    with pytest.raises(ConfigError, match=r"^default_registry: a host name such as docker\.io, not 'a/b'$"):
        Mirror(MemoryStore(), MemoryRouter(), default_registry="a/b")
    with pytest.raises(ConfigError, match=r"^registries: host names"):
        Mirror(MemoryStore(), MemoryRouter(), registries=["https://docker.io"])
    with pytest.raises(ConfigError, match=r"^exclude: regular expressions"):
        Mirror(MemoryStore(), MemoryRouter(), exclude=["("])
