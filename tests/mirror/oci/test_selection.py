"""`Selection`: which registries, repositories and tags a mirror is for."""

from __future__ import annotations

import pytest

from peili.mirror import ConfigError, Selection


def test_a_selection_allows_everything_by_default() -> None:
    assert Selection().allows(None, "demo")
    assert Selection().allows("docker.io", "demo", "v1")
    assert not Selection(registries=["docker.io"]).allows(None, "demo")


@pytest.mark.parametrize(
    ("pattern", "registry", "matches"),
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
def test_a_registry_is_selected_by_name_or_wildcard_regardless_of_case(
    pattern: str, registry: str, *, matches: bool
) -> None:
    selection = Selection(registries=[pattern, "other.example"])
    assert selection.has(registry) is matches
    assert selection.allows(registry, "demo", "v1") is matches


@pytest.mark.parametrize("wrong", ["", "a/*", "https://*.example.com", "*.exa mple.com", "[::1*]:1/", "?.example.com"])
def test_a_registry_that_is_not_a_host_name_with_wildcards_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"^registries: host names such as docker\.io or \*\.example\.com, not "):
        Selection(registries=[wrong])


def test_exclude_sees_the_registry_in_lower_case_and_a_tag_as_it_is() -> None:
    selection = Selection(exclude=["^docker\\.io/library/", ":RC"])
    assert not selection.allows("Docker.IO", "library/demo")
    assert not selection.allows("ghcr.io", "demo", "RC1")
    assert selection.allows("ghcr.io", "demo", "rc1")


def test_an_empty_expression_is_refused() -> None:
    """It would exclude every image. A template makes it of a variable that is not set."""
    with pytest.raises(ConfigError, match=r"^exclude: regular expressions that are not empty$"):
        Selection(exclude=["a", ""])
