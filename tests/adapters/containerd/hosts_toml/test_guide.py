"""The examples in docs/containerd.md work as shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.support.trees import make_tree

from peili.adapters.containerd import HostsFiles
from peili.adapters.containerd.hosts_toml.directories import split_section
from peili.mirror import Mirror
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

DOCUMENT = (Path(__file__).parents[4] / "docs/containerd.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def test_apply_writes_the_file_that_the_guide_shows(tmp_path: Path) -> None:
    shown = next(each for each in blocks("toml") if "# >>> peili hosts" in each).encode()
    before = split_section(shown).rest
    assert b"peili" not in before
    make_tree(tmp_path, {"docker.io/hosts.toml": before})
    HostsFiles("http://127.0.0.1:5050", config_path=[tmp_path]).apply()
    assert (tmp_path / "docker.io/hosts.toml").read_bytes() == shown


def test_the_python_examples_run(tmp_path: Path) -> None:
    code = "".join(blocks("python")).replace("/etc/containerd/certs.d", str(tmp_path))
    names: dict[str, Any] = {"store": MemoryStore(), "router": MemoryRouter()}
    exec(compile(code, "containerd.md", "exec"), names)
    assert [each.file for each in names["outcome"].changes] == [tmp_path / "_default/hosts.toml"]
    assert isinstance(names["mirror"], Mirror)
    assert "ContainerdHosts" in names["mirror"].readiness()
