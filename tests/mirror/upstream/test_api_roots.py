"""Where the API of a registry is."""

from __future__ import annotations

import pytest

from peili.mirror.upstream.api_roots import ApiRoot, default_roots


@pytest.mark.parametrize(
    ("registry", "url"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("ghcr.io", "https://ghcr.io/v2"),
        ("registry.corp:5000", "https://registry.corp:5000/v2"),
        ("localhost", "http://localhost/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.2:5000", "http://127.0.0.2:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
        ("localhost.corp", "https://localhost.corp/v2"),
    ],
)
def test_the_default_root_is_where_containerd_asks(registry: str, url: str) -> None:
    assert [each.url for each in default_roots(registry)] == [url]


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("https://a.example", "https://a.example/v2"),
        ("https://a.example/", "https://a.example/v2"),
        ("https://a.example/v2/", "https://a.example/v2"),
        ("http://a.example:5000/prefix", "http://a.example:5000/prefix/v2"),
    ],
)
def test_a_root_is_made_of_the_url_of_a_registry(url: str, root: str) -> None:
    assert ApiRoot.of(url).url == root


@pytest.mark.parametrize(
    "url", ["a.example", "ftp://a.example", "https://u:p@a.example", "https://a.example:x", "http://", "https://a?b"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"not the root|Port|port"):
        ApiRoot.of(url)
