"""The options of the containerd store, and the errors for wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peili.mirror import ConfigError, Plugins
from peili.stores.containerd import ContainerdStore
from peili.stores.containerd.options import ContainerdOptions


def test_the_store_is_found_by_its_name() -> None:
    assert isinstance(Plugins().store("containerd", {}), ContainerdStore)


@pytest.mark.parametrize("address", ["/run/other.sock", "unix:///run/other.sock"])
def test_an_address_is_a_path_or_a_unix_url(address: str) -> None:
    config = {"address": address, "namespaces": ["k8s.io", "k8s.io", "moby"], "content_path": "/content"}
    expected = ContainerdOptions(Path("/run/other.sock"), ("k8s.io", "moby"), Path("/content"))
    assert ContainerdOptions.from_config(config) == expected


@pytest.mark.parametrize(
    ("config", "key", "expected"),
    [
        ({"adress": "/x"}, "adress", "there are: address, namespaces, content_path"),
        ({"address": "relative.sock"}, "address", "/run/containerd/containerd.sock"),
        ({"address": "tcp://127.0.0.1:1"}, "address", "the path of containerd's socket"),
        ({"address": 5}, "address", "not 5"),
        ({"address": "/" + "ä" * 54}, "address", "at most 107 bytes"),
        ({"address": "/run/a,b.sock"}, "address", "without a comma"),
        ({"namespaces": "k8s.io"}, "namespaces", 'a list of names, as in ["k8s.io"]'),
        ({"namespaces": ["k8s.io", ""]}, "namespaces", "not ''"),
        ({"namespaces": ["a/b"]}, "namespaces", "not 'a/b'"),
        ({"namespaces": ["x" * 77]}, "namespaces", "names of containerd namespaces"),
        ({"content_path": "content"}, "content_path", "absolute path"),
        ({"content_path": 1}, "content_path", "not 1"),
    ],
)
def test_the_error_for_a_wrong_option_says_what_is_right(config: dict[str, Any], key: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ContainerdStore.from_config(config)
    assert raised.value.key == key
    assert expected in raised.value.expected
    assert "\n" not in str(raised.value)
