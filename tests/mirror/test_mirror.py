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


@pytest.mark.parametrize(
    ("pattern", "registry", "fits"),
    [
        ("docker.io", "Docker.IO", True),
        ("Docker.IO", "docker.io", True),
        ("docker.io", "docker.io:443", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "A.B.Example.com", True),
        ("*.Example.com", "a.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "a.example.com.evil.example", False),
        ("*.example.com", "a-example.com", False),
        ("*.example.com", "a.example.com:5000", False),
        ("*.example.com:*", "a.example.com:5000", True),
        ("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.eu-west-1.amazonaws.com", True),
        ("*.dkr.ecr.*.amazonaws.com", "dkr.ecr.amazonaws.com", False),
        ("a.*.b.*.c", "a.b.c", False),
        ("ab*ba", "aba", False),
        ("ab*ba", "abba", True),
        ("*", "anything.example:1", True),
    ],
)
def test_a_registry_is_meant_by_name_or_by_wildcard_and_in_any_case(pattern: str, registry: str, *, fits: bool) -> None:
    selection = Selection(registries=[pattern, "other.example"])
    assert selection.has(registry) is fits
    assert selection.allows(registry, "demo", "v1") is fits


@pytest.mark.parametrize("wrong", ["", "a/*", "https://*.example.com", "*.exa mple.com", "[::1*]:1/", "?.example.com"])
def test_what_is_no_host_name_with_wildcards_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"^registries: host names such as docker\.io or \*\.example\.com, not "):
        Selection(registries=[wrong])


def test_exclude_sees_the_registry_in_lower_case_and_a_tag_as_it_is() -> None:
    selection = Selection(exclude=["^docker\\.io/library/", ":RC"])
    assert not selection.allows("Docker.IO", "library/demo")
    assert not selection.allows("ghcr.io", "demo", "RC1")
    assert selection.allows("ghcr.io", "demo", "rc1")


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), 1e300, True, "5"])
def test_a_limit_is_a_number_above_zero_that_makes_sense(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^reader_timeout: a number above zero, not "):
        Limits(reader_timeout=value)
