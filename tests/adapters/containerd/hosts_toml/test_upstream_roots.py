"""`HostsFiles.upstream_roots`: where containerd finds the API of a registry, without peili."""

from __future__ import annotations

from pathlib import Path

import pytest

from peili.adapters.containerd import HostsFiles
from peili.mirror import ApiRoot

MIRROR = "http://127.0.0.1:5050"


def roots(tmp_path: Path, registry: str, files: dict[str, str]) -> list[ApiRoot]:
    """Return the roots after `apply`, with hosts.toml files by the name of their directory."""
    for name, text in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text(text)
    hosts = HostsFiles(MIRROR, config_path=[tmp_path], version="2.1.4")
    assert not hosts.apply().problems
    return list(hosts.upstream_roots(registry))


@pytest.mark.parametrize(
    ("registry", "files", "expected"),
    [
        ("docker.io", {}, ["https://registry-1.docker.io/v2"]),
        ("registry.corp:5000", {}, ["https://registry.corp:5000/v2"]),
        ("a.example", {"a.example": 'server = "https://b.example"'}, ["https://b.example/v2"]),
        ("a.example", {"_default": '[host."http://proxy:80"]'}, ["http://proxy:80/v2", "https://a.example/v2"]),
        (
            "docker.io",
            {"docker.io": '[host."https://harbor/v2/hub"]\noverride_path = true\n[host."https://other"]'},
            ["https://harbor/v2/hub", "https://other/v2", "https://registry-1.docker.io/v2"],
        ),
        ("a.example", {"a.example": '[host."https://pull.only"]\ncapabilities = ["pull"]'}, ["https://a.example/v2"]),
        ("a.example", {"a.example": "not toml"}, ["https://a.example/v2"]),
    ],
)
def test_the_roots_are_those_that_containerd_asks_for_tags(
    registry: str, files: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    if files.get(registry) == "not toml":
        (tmp_path / registry).mkdir()
        (tmp_path / registry / "hosts.toml").write_text("not toml")
        found = list(HostsFiles(MIRROR, config_path=[tmp_path]).upstream_roots(registry))
    else:
        found = roots(tmp_path, registry, files)
    assert [each.url for each in found] == expected
    own = {"docker.io": "https://registry-1.docker.io/v2"}.get(registry, f"https://{registry}/v2")
    assert [each.url for each in found if not each.is_mirror] == [own] * expected.count(own), "others are sent ?ns="


def test_certificates_and_headers_are_used(tmp_path: Path) -> None:
    text = """\
server = "https://a.example"
[host."https://b.example"]
ca = "ca.pem"
client = [["/c.pem", "/k.pem"]]
skip_verify = true
[host."https://b.example".header]
x-token = "1"
"""
    first, second = roots(tmp_path, "a.example", {"a.example": text})
    ca, client = (tmp_path / "a.example/ca.pem",), ((Path("/c.pem"), Path("/k.pem")),)
    assert first == ApiRoot(
        "https://b.example/v2", ca, client, skip_verify=True, headers={"x-token": "1"}, is_mirror=True
    )
    assert second == ApiRoot("https://a.example/v2")


def test_without_any_directory_it_is_the_registry(tmp_path: Path) -> None:
    found = HostsFiles(MIRROR, config_path=[tmp_path / "none"]).upstream_roots("a.example")
    assert [each.url for each in found] == ["https://a.example/v2"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, [True]),
        ({"_default": '[host."http://proxy:80"]'}, [False, True]),
        ({"_default": 'ca = "/ca.pem"'}, [True]),
        ({"_default": 'server = "https://b.example"'}, [False]),
        ({"a.example": ""}, [False]),
        ({"a.example": '[host."http://proxy:80"]'}, [False, False]),
    ],
)
def test_a_registry_without_a_directory_is_only_assumed(
    files: dict[str, str], expected: list[bool], tmp_path: Path
) -> None:
    found = roots(tmp_path, "a.example", files)
    assert [each.is_assumed for each in found] == expected
    assert [each.is_default for each in found] == ["a.example" not in files] * len(found)
