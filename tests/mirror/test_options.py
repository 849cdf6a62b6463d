"""What a mirror is built from, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from peili.mirror import ConfigError, Limits, Mirror, Peer, Selection
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore


def test_it_can_be_built_without_a_loop_and_says_what_is_wrong() -> None:
    assert isinstance(Mirror(MemoryStore(), MemoryRouter()).identity, Peer)
    with pytest.raises(ConfigError, match=r"^default_registry: a host name such as docker\.io, not 'a/b'$"):
        Mirror(MemoryStore(), MemoryRouter(), default_registry="a/b")
    with pytest.raises(ConfigError, match=r"^registries: host names"):
        Mirror(MemoryStore(), MemoryRouter(), registries=["https://docker.io"])
    with pytest.raises(ConfigError, match=r"^exclude: regular expressions"):
        Mirror(MemoryStore(), MemoryRouter(), exclude=["("])


def test_a_selection_is_for_everything_by_default() -> None:
    assert Selection().allows(None, "demo")
    assert Selection().allows("docker.io", "demo", "v1")
    assert not Selection(registries=["docker.io"]).allows(None, "demo")


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), 1e300, True, "5"])
def test_a_limit_is_a_number_above_zero_that_makes_sense(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^reader_timeout: a number above zero, not "):
        Limits(reader_timeout=value)
