"""Which URLs lead to the same door, as containerd reads them."""

from __future__ import annotations

import pytest

from peili.adapters.files.urls import same_door


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("http://LOCALHOST:5050", "http://localhost:5050", True),
        ("http://localhost", "http://localhost:80", True),
        ("https://m", "m", True),
        ("http://m/v2/hub", "http://m", False),
        ("http://m:5050", "https://m:5050", False),
        ("http://[::1", "http://[::1", True),
        ("http://m:x", "http://m", False),
    ],
)
def test_urls_of_the_same_door(url: str, other: str, same: bool) -> None:
    assert same_door(url, other) is same
