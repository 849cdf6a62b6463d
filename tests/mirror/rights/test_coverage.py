"""Which repositories are covered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.strategies import REGISTRIES, REPOSITORIES

from peili.mirror import ConfigError
from peili.mirror.rights.coverage import Coverage

DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


@pytest.mark.parametrize(
    ("pattern", "registry", "repository", "is_covered"),
    [
        ("registry.corp", "registry.corp", "a/b", True),
        ("registry.corp", "Registry.Corp", "a", True),
        ("registry.corp", "registry.corp:443", "a", True),
        ("registry.corp", "registry.corp:5000", "a", False),
        ("registry.corp", "other.corp", "registry.corp/a", False),
        ("ghcr.io/acme/*", "ghcr.io", "acme/app", True),
        ("ghcr.io/acme/*", "ghcr.io", "acme/app/part", True),
        ("ghcr.io/acme/*", "ghcr.io", "acme", False),
        ("ghcr.io/acme/*", "ghcr.io", "acmeother/app", False),
        ("ghcr.io/acme/app", "ghcr.io", "acme/app", True),
        ("ghcr.io/acme/app", "ghcr.io", "acme/app2", False),
        ("*.corp", "registry.corp", "a", True),
        ("*.corp", "corp", "a", False),
        ("*.corp/team/*", "evil.example", "x.corp/team/a", False),
        ("docker.io/acme/*", "registry-1.docker.io", "acme/app", True),
        ("index.docker.io/acme/*", "docker.io", "acme/app", True),
        *((one, other, "a", True) for one in DOCKER_HUB for other in (*DOCKER_HUB, "Docker.IO:443")),
        ("*", "any.example", "a", True),
    ],
)
def test_a_pattern_covers(pattern: str, registry: str, repository: str, is_covered: bool) -> None:
    assert Coverage([pattern]).covers(registry, repository) is is_covered
    assert Coverage([pattern]).concerns(registry) or not is_covered


@settings(max_examples=30)
@given(registry=REGISTRIES, repository=REPOSITORIES)
def test_a_name_covers_itself_and_its_registry_covers_it(registry: str, repository: str) -> None:
    assert Coverage([f"{registry}/{repository}"]).covers(registry, repository)
    assert Coverage([registry]).covers(registry, repository)
    assert not Coverage().covers(registry, repository)


@settings(max_examples=50)
@given(st.lists(st.text(max_size=20), min_size=1))
def test_any_text_is_a_pattern_or_an_error_that_says_what_is_right(patterns: list[str]) -> None:
    try:
        coverage: Coverage | None = Coverage(patterns)
    except ConfigError as error:
        coverage, key = None, error.key
        assert key == "authorize"
    assert coverage is None or coverage


@pytest.mark.parametrize("pattern", ["", "/app", "registry.corp/", "registry.corp/App", "https://registry.corp", "a b"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"^authorize: registries such as registry\.corp, or "):
        Coverage([pattern])


def test_only_a_name_without_a_wildcard_names_a_registry() -> None:
    coverage = Coverage(["registry.corp/team/*", "*.example"])
    assert coverage.names("registry.corp")
    assert coverage.names("REGISTRY.corp")
    assert not coverage.names("a.example")


def test_a_registry_is_concerned_if_one_of_its_repositories_may_be_covered() -> None:
    coverage = Coverage(["registry.corp/team/*", "*.example"])
    assert [coverage.concerns(each) for each in ("Registry.corp:443", "a.example")] == [True, True]
    assert [coverage.concerns(each) for each in ("registry.corp.evil", "example")] == [False, False]
