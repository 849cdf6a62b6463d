"""URLs in a machine configuration that mean the same as others."""

from __future__ import annotations

from pathlib import Path

import pytest

from peili.adapters.standalone.cli import main

MIRROR = "http://127.0.0.1:5050"


@pytest.mark.parametrize("url", [f"{MIRROR}/v2", f"{MIRROR}/", f"{MIRROR}/v2/"])
def test_a_mirror_added_first_by_hand_is_recognised(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "controlplane.yaml"
    file.write_text(f"apiVersion: v1alpha1\nkind: RegistryMirrorConfig\nname: docker.io\nendpoints:\n  - url: {url}\n")
    where = ["--format", "talos", "--file", str(file), "--mirror", MIRROR, "--registry", "docker.io"]
    assert main(["hosts", "apply", *where]) == 0
    assert capsys.readouterr().out == ""
    assert main(["hosts", "show", *where]) == 0
    assert f"{url} (peili)" in capsys.readouterr().out
