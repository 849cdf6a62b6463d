"""docs/plugins.md shows the files of a third-party distribution as they are, and its other examples work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from peili.mirror.testing import make_layout, pack_tar

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "docs" / "plugins.md").read_text()
SHOWN = dict(re.findall(r"<!-- (\S+) -->\n```\w+\n(.*?)```\n", GUIDE, re.DOTALL))
HARBOUR = ROOT / "tests" / "third_party" / "harbour"


def test_the_guide_shows_every_file_of_the_distribution() -> None:
    files = {str(each.relative_to(ROOT)) for each in HARBOUR.rglob("*.*") if each.suffix in {".py", ".toml"}}
    assert set(SHOWN) == {each for each in files if not each.endswith("__init__.py")}


@pytest.mark.parametrize("file", SHOWN)
def test_the_guide_shows_the_files_as_they_are(file: str) -> None:
    assert SHOWN[file] == (ROOT / file).read_text()


def test_a_router_takes_about_thirty_lines() -> None:
    lines = SHOWN["tests/third_party/harbour/src/peili_harbour/router.py"].splitlines()
    assert len([line for line in lines if line.strip()]) <= 30


def test_the_configuration_in_the_guide_is_valid(site: Path, tmp_path: Path) -> None:
    configuration = re.findall(r"## Chosen by name\n\n```toml\n(.*?)```", GUIDE, re.DOTALL)[0]
    file = tmp_path / "peili.toml"
    for wrong, code, output in (
        ("", 0, "the configuration is valid\n"),
        ("interval = 1\n", 2, GUIDE.partition("--check\npeili: /etc/peili.toml")[2].partition("\n")[0] + "\n"),
    ):
        file.write_text(configuration + wrong)
        done = subprocess.run(
            [sys.executable, "-m", "peili.adapters.standalone", "serve", "--check", "--config", str(file)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(site)},
            check=False,
        )
        assert (done.returncode, (done.stdout + done.stderr).removeprefix(f"peili: {file}")) == (code, output)


def test_the_example_for_register_works(site: Path, tmp_path: Path) -> None:
    example = re.findall(r"## Without entry points\n.*?```python\n(.*?)```", GUIDE, re.DOTALL)[0]
    archive = pack_tar(make_layout(tmp_path / "layout", layers=[10]).path, tmp_path / "images.tar")
    program = (
        "from peili_harbour.store import ArchiveStore\n"
        f"{example}"
        f"print(type(plugins.store('archive', {{'path': {str(archive)!r}}})).__name__)\n"
        "print(type(plugins.router('members-file', {'path': 'members'})).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=False,
    )
    assert done.stdout == "ArchiveStore\nFileRouter\n", done.stderr
