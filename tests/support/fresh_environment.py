"""A new virtual environment with peili as a user installs it, from a wheel. Its dependencies are those of this one."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PIP = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir")


def create_environment(directory: Path) -> Path:
    """Create a virtual environment, without a network, and return the path of its command ``peili``.

    Args:
        directory: A new directory.
    """
    environment, wheels, dependencies = directory / "venv", directory / "wheels", directory / "dependencies"
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    alone = ("--no-deps", "--no-build-isolation")  # hatchling is here, and nothing is fetched
    _run([sys.executable, "-m", "pip", "wheel", *_PIP, *alone, "--wheel-dir", str(wheels), str(ROOT)])
    [wheel] = wheels.glob("peili-*.whl")
    python = environment / "bin/python"
    install = ["install", *_PIP, "--no-index", "--no-deps", str(wheel)]
    _run([sys.executable, "-m", "pip", "--python", str(python), *install])
    dependencies.mkdir()
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if "peili" not in each.name and each.suffix != ".pth":  # not the checkout, which is installed here
            (dependencies / each.name).symlink_to(each)
    [site] = (environment / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    return environment / "bin/peili"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
