"""Parsing the paths of requests."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.support.strategies import DIGESTS, REFERENCES, REGISTRIES, REPOSITORIES

from peili.mirror import Digest, Reference
from peili.mirror.oci.requests import Endpoint, HTTPError, Target, api_path, parse_target

WORDS = st.sampled_from(
    ["", "v2", "manifests", "blobs", "tags", "list", "..", "library", "docker.io", "v1", "sha256:0"]
)
PATHS = st.one_of(
    st.text(), st.lists(st.one_of(WORDS, st.text(max_size=9), DIGESTS)).map(lambda all_: "/" + "/".join(all_))
)


def target(path: str, root_path: str = "", ns: str | None = None, default: str | None = None) -> Target:
    return parse_target(api_path(path, root_path), ns=ns, default_registry=default)


def target_or_error(path: str, root_path: str, ns: str | None) -> Target | HTTPError:
    try:
        return target(path, root_path, ns)
    except HTTPError as error:
        return error


@given(PATHS, st.sampled_from(["", "/v2", "/peili", "/a/v2"]), st.none() | st.text(max_size=30))
def test_any_path_is_a_target_or_a_4xx(path: str, root_path: str, ns: str | None) -> None:
    for each in (path, root_path + path):
        found = target_or_error(each, root_path, ns)
        if isinstance(found, HTTPError):
            assert 400 <= found.status < 500
            assert found.body().isascii()
            assert len(found.body()) < 2000
        else:
            assert found.endpoint is Endpoint.BASE or found.repository


@given(REFERENCES)
def test_a_tag_is_parsed_in_each_form(reference: Reference) -> None:
    assume(not reference.repository.startswith(f"{reference.registry}/".lower()))  # would repeat the registry
    expected = Target(Endpoint.MANIFEST, reference.registry, reference.repository, tag=reference.tag)
    path = f"/v2/{reference.repository}/manifests/{reference.tag}"
    assert target(path, ns=reference.registry) == expected
    assert target(f"/v2/{reference.registry}{path[3:]}") == replace(expected, is_registry_in_path=True)
    assert target(f"/peili{path}", "/peili", ns=reference.registry) == expected
    assert target(path, "/v2", ns=reference.registry) == expected
    assert expected.peer_path == f"{path}?ns={quote(reference.registry, safe='')}"
    assert expected.name == str(reference)


@given(REGISTRIES, REPOSITORIES, DIGESTS, st.sampled_from([Endpoint.MANIFEST, Endpoint.BLOB]))
def test_a_digest_is_parsed_in_each_form(registry: str, repository: str, digest: str, endpoint: Endpoint) -> None:
    assume(not repository.startswith(f"{registry}/".lower()))  # would repeat the registry
    expected = Target(endpoint, registry, repository, digest=Digest(digest))
    path = f"/v2/{repository}/{endpoint.value}/{digest}"
    assert target(path, ns=registry) == expected
    by_path = target(f"/v2/{registry}{path[3:]}", default="quay.io")
    assert by_path == replace(expected, is_registry_in_path=True)
    assert expected.peer_path.startswith(f"{path}?ns=")


@pytest.mark.parametrize(
    ("path", "root_path", "repository"),
    [
        ("/v2/v2/x/manifests/v1", "", "v2/x"),
        ("/v2/v2/x/manifests/v1", "/v2", "v2/x"),
        ("/v2/x/manifests/v1", "", "x"),
        ("/v2/x/manifests/v1", "/v2", "x"),
        ("/a/v2/v2/x/manifests/v1", "/a", "v2/x"),
        ("/a/v2/v2/x/manifests/v1", "/a/v2", "v2/x"),
        ("/v2/manifests/manifests/v1", "", "manifests"),
        ("/v2/blobs/tags/list/manifests/v1", "", "blobs/tags/list"),
    ],
)
def test_a_second_v2_belongs_to_the_repository(path: str, root_path: str, repository: str) -> None:
    assert target(path, root_path) == Target(Endpoint.MANIFEST, None, repository, tag="v1")


@pytest.mark.parametrize(
    ("path", "ns", "default", "registry", "repository"),
    [
        ("/v2/library/redis/tags/list", None, None, None, "library/redis"),
        ("/v2/library/redis/tags/list", None, "docker.io", "docker.io", "library/redis"),
        ("/v2/library/redis/tags/list", "ghcr.io", "docker.io", "ghcr.io", "library/redis"),
        ("/v2/ghcr.io/redis/tags/list", None, "docker.io", "ghcr.io", "redis"),
        ("/v2/ghcr.io/redis/tags/list", "docker.io", None, "docker.io", "ghcr.io/redis"),
        ("/v2/ghcr.io/tags/list", None, "docker.io", "docker.io", "ghcr.io"),
        ("/v2/localhost:5000/a/tags/list", None, None, "localhost:5000", "a"),
    ],
)
def test_the_registry_comes_from_ns_else_the_path_else_the_default(
    path: str, ns: str | None, default: str | None, registry: str | None, repository: str
) -> None:
    is_in_path = ns is None and path.startswith(f"/v2/{registry}/")
    expected = Target(Endpoint.TAGS, registry, repository, is_registry_in_path=is_in_path)
    assert target(path, ns=ns, default=default) == expected


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/", 404, "UNSUPPORTED"),
        ("/v1/", 404, "UNSUPPORTED"),
        ("/v22/x/manifests/v1", 404, "UNSUPPORTED"),
        ("/v2/_catalog", 404, "UNSUPPORTED"),
        ("/v2/x/referrers/sha256:0", 400, "DIGEST_INVALID"),
        ("/v2/x/tags/other", 404, "UNSUPPORTED"),
        ("/v2/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/X/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/x//manifests/v1", 400, "NAME_INVALID"),
        ("/v2/../x/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/x/manifests/", 400, "MANIFEST_INVALID"),
        ("/v2/x/manifests/..", 400, "MANIFEST_INVALID"),
        ("/v2/x/manifests/a b", 400, "MANIFEST_INVALID"),
        ("/v2/x/manifests/sha256:0", 400, "DIGEST_INVALID"),
        ("/v2/x/blobs/v1", 400, "DIGEST_INVALID"),
        ("/v2/x/blobs/md5:" + "0" * 32, 400, "DIGEST_INVALID"),
    ],
)
def test_other_and_malformed_paths_are_refused(path: str, status: int, code: str) -> None:
    with pytest.raises(HTTPError) as caught:
        target(path)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_an_ns_that_is_not_a_host_name_is_refused() -> None:
    with pytest.raises(HTTPError, match="ns is not the host name of a registry"):
        target("/v2/x/manifests/v1", ns="a/b")


def test_a_repository_that_begins_like_its_registry_round_trips() -> None:
    target = Target(Endpoint.MANIFEST, "registry.example", "registry.example/demo", tag="v1")
    path = urlsplit(target.peer_path).path.removeprefix("/v2")
    assert parse_target(path, ns="registry.example", default_registry=None) == target


def test_a_plain_word_equal_to_the_registry_belongs_to_the_repository() -> None:
    found = target("/v2/registry/demo/manifests/v1", ns="registry")
    assert (found.registry, found.repository) == ("registry", "registry/demo")
