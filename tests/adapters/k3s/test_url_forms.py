"""URLs and names in a registries.yaml that mean the same as others."""

from __future__ import annotations

from pathlib import Path

import pytest

from peili.adapters.k3s import RegistriesFile

MIRROR = "http://127.0.0.1:5050"
IPV6 = "http://[::1]:5050"


def test_an_ipv6_mirror_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "registries.yaml"
    (problem,) = RegistriesFile(IPV6, file=file).apply().problems
    assert "such as http://localhost:5050" in str(problem)
    assert not file.exists()


@pytest.mark.parametrize("names", [(), ("*",)])
def test_default_stands_for_every_registry(names: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "registries.yaml"
    before = 'mirrors:\n  _default:\n    endpoint: ["https://m.example"]\n'
    file.write_text(before)
    registries = RegistriesFile(MIRROR, file=file, registries=names)
    assert registries.apply().problems == ()
    (shown,) = registries.show(data_dir=tmp_path)
    assert (shown.registry, shown.endpoints) == ("_default", (MIRROR, "https://m.example"))
    assert registries.apply().changes == ()
    registries.remove()
    assert file.read_text() == before


def test_a_file_with_default_and_star_is_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "registries.yaml"
    before = 'mirrors:\n  _default:\n    endpoint: ["https://m"]\n  "*":\n    endpoint: ["https://n"]\n'
    file.write_text(before)
    (problem,) = RegistriesFile(MIRROR, file=file).apply().problems
    assert "remove one" in str(problem)
    assert file.read_text() == before


@pytest.mark.parametrize("url", [f"{MIRROR}/v2", f"{MIRROR}/"])
def test_a_mirror_added_first_by_hand_is_recognised(url: str, tmp_path: Path) -> None:
    file = tmp_path / "registries.yaml"
    file.write_text(f'mirrors:\n  docker.io:\n    endpoint: ["{url}"]\n')
    registries = RegistriesFile(MIRROR, file=file, registries=["docker.io"])
    assert registries.apply().changes == ()
    assert registries.show(data_dir=tmp_path)[0].is_first
