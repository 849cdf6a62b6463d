"""Digests, references and keys: which texts they accept, and that parsing their text returns them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.strategies import DIGESTS, REFERENCES, REPOSITORIES

from peili.mirror import Descriptor, Digest, Reference, parse_key
from peili.mirror.oci.references import is_repository, looks_like_registry

Made = TypeVar("Made")
ALMOST = st.text("sha256:51/.-_@[]ABCdef0123456789 \n\x00ä", max_size=200)


def made(make: Callable[..., Made], *parts: str) -> tuple[Made | None, str]:
    """Return what `make` returns for `parts`, or its error."""
    try:
        return make(*parts), ""
    except ValueError as error:
        return None, str(error)


@given(DIGESTS)
def test_a_digest_is_equal_to_its_text(text: str) -> None:
    digest = Digest(text)
    assert str(digest) == text
    assert f"{digest.algorithm}:{digest.encoded}" == text
    assert parse_key(text) == digest
    assert isinstance(parse_key(text), Digest)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_digest_can_be_computed(algorithm: str) -> None:
    assert Digest.of(b"peili", algorithm) == Digest.of(memoryview(b"peili"), algorithm)
    assert Digest.of(b"peili", algorithm) != Digest.of(b"peilI", algorithm)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha512:" + "0" * 64,
        "sha256:" + "A" * 64,
        "SHA256:" + "a" * 64,
        "sha256:" + "0" * 63 + "\n",
        "sha256:" + "٣" * 64,
        "md5:" + "0" * 32,
        "0" * 64,
    ],
)
def test_a_malformed_digest_is_refused_in_one_line_that_says_what_is_right(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a digest: .*; right is sha256:.*$"):
        Digest(text)


@given(st.one_of(st.text(), ALMOST))
def test_junk_is_a_digest_or_a_value_error(text: str) -> None:
    digest, problem = made(Digest, text)
    if digest is None:
        assert "\n" not in problem
        assert len(problem) < 600
    else:
        assert re.fullmatch(r"sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})", digest)


@given(REFERENCES)
def test_parsing_the_text_of_a_reference_returns_it(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference
    assert parse_key(str(reference)) == reference


@given(st.text(), st.text(), st.text())
def test_the_parts_of_a_reference_are_valid_or_refused(registry: str, repository: str, tag: str) -> None:
    reference, problem = made(Reference, registry, repository, tag)
    if reference is None:
        assert "\n" not in problem
    else:
        assert Reference.parse(str(reference)) == reference


@given(st.one_of(st.text(), ALMOST))
def test_junk_is_a_key_or_a_value_error(text: str) -> None:
    key, problem = made(parse_key, text)
    if key is None:
        assert "\n" not in problem
    else:
        assert str(key) == text


@pytest.mark.parametrize(
    "text",
    [
        "docker.io/library/redis",  # no tag
        "library/redis:7",  # no registry
        "redis:7",
        "docker.io/library/redis:",
        "docker.io/library/Redis:7",
        "docker.io/../redis:7",
        "docker.io//redis:7",
        "docker.io/redis:7@sha256:" + "0" * 64,
        "docker.io/redis:-7",
        "docker.io/redis:" + "7" * 129,
        "docker.io/" + "a" * 256 + ":7",
        "docker..io/redis:7",
        "-docker.io/redis:7",
        "docker.io:123456/redis:7",
        "user@docker.io/redis:7",
    ],
)
def test_an_incomplete_or_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a .*; right (is|are) "):
        Reference.parse(text)


@pytest.mark.parametrize(
    "text",
    ["localhost/a:1", "localhost:5000/v2/x:1", "[::1]:5000/a:1", "10.0.0.1/a/b/c:1", "Docker.io/a__b/c---d.e:L_1.2-3"],
)
def test_unusual_references_are_accepted(text: str) -> None:
    assert str(Reference.parse(text)) == text


@given(REPOSITORIES)
def test_repository_names_are_recognised(name: str) -> None:
    assert is_repository(name)
    assert not is_repository(f"{name}/")
    assert not is_repository(f"/{name}")
    assert not is_repository(f"{name}/../{name}")
    assert not is_repository(f"{name}\n")


@pytest.mark.parametrize(
    ("component", "expected"), [("library", False), ("docker.io", True), ("a:1", True), ("..", False)]
)
def test_a_dot_or_a_port_distinguishes_a_registry_from_a_repository(component: str, expected: bool) -> None:
    assert looks_like_registry(component) is expected


def test_descriptors_are_values() -> None:
    digest = Digest.of(b"")
    one, other = (Descriptor("text/plain", digest, 0, {"a": "b"}) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
