"""scripts/venv, which `make` uses: one line says what is wrong with the Python that it finds."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def venv_with(tmp_path: Path, python: str) -> tuple[int, list[str]]:
    """Run scripts/venv with a `python` that is this shell script. Returns the exit code and the error lines."""
    stub = tmp_path / "python-stub"
    stub.write_text(f"#!/bin/sh\n{python}\n")
    stub.chmod(0o755)
    done = subprocess.run(
        ["sh", ROOT / "scripts" / "venv", tmp_path / "venv", "test"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": str(stub)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert not (tmp_path / "venv").exists()
    return done.returncode, done.stderr.splitlines()


def test_an_old_python_is_refused_with_its_version(tmp_path: Path) -> None:
    code, lines = venv_with(tmp_path, 'case "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac')
    assert code == 1
    assert lines == [f"peili: needs Python 3.11 or newer; PYTHON={tmp_path}/python-stub is 3.9"]


def test_without_the_venv_module_the_error_says_how_to_install_it(tmp_path: Path) -> None:
    python = shlex.quote(sys.executable)
    code, lines = venv_with(tmp_path, f'case "$2" in *ensurepip*) exit 1 ;; *) exec {python} "$@" ;; esac')
    assert code == 1
    assert len(lines) == 1
    assert "has no venv module; on Debian or Ubuntu: apt-get install python3." in lines[0]


STAND_IN = r"""#!/bin/sh
case "$*" in
    *"-m venv"*)
        for directory; do :; done
        rm -rf "$directory"
        mkdir -p "$directory/bin"
        cp "$0" "$directory/bin/python" ;;
    *print*) echo 3.11 ;;
esac
"""
"""A stand-in for Python that copies itself into new environments and installs nothing."""


def checkout(root: Path) -> Path:
    """Create the files of a checkout that the script needs in `root`."""
    (root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/venv", root / "scripts/venv")
    (root / "pyproject.toml").touch()
    (root / "python").write_text(STAND_IN)
    (root / "python").chmod(0o755)
    return root


def made_in(root: Path, *before: str) -> bool:
    """Run the script. Returns whether it created an environment; else it reused the existing one."""
    command = [*before, "sh", "scripts/venv", ".venv", "test"]
    environ = {**os.environ, "PYTHON": "./python"}
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return "making .venv" in done.stdout


@pytest.mark.parametrize("name", ["plain", "a b", "it's 100% #1 ä (x)", '$HOME `id` "y" \\ *'])
def test_an_environment_is_reused_in_its_place_and_created_again_in_another_place(tmp_path: Path, name: str) -> None:
    """The scripts in a copied or moved environment would run the code of the other checkout."""
    root = checkout(tmp_path / name)
    assert [made_in(root) for _ in range(2)] == [True, False]
    copy = shutil.copytree(root, tmp_path / "copy")
    assert [made_in(each) for each in (copy, root, copy)] == [True, False, False]
    assert made_in(root.rename(tmp_path / "moved"))


def bound_by_modes() -> list[str]:
    """Return a prefix for a command, with which file modes also apply to root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("not installed: setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]


def test_a_copy_of_a_read_only_checkout_is_made_writable(tmp_path: Path) -> None:
    root = checkout(tmp_path / "root")
    (root / "scripts/venv").chmod(0o444)
    root.chmod(0o555)
    assert made_in(root, *bound_by_modes())


def test_a_checkout_of_another_user_is_refused_with_the_reason(tmp_path: Path) -> None:
    root = Path("/")
    if os.geteuid() == 0:
        root = tmp_path / "root"
        root.mkdir(mode=0o755)
        os.chown(root, 65534, 65534)
    command = [*bound_by_modes(), "sh", str(ROOT / "scripts/venv"), ".venv", "test"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, f"peili: {root} is not writable; make a writable copy\n")
