"""A cache of programs that the tests run but do not install. This module needs only the standard library."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
"""The PATH in which commands are searched. Some may be in a directory that only root's PATH contains."""


def cache_directory(*names: str) -> Path:
    """Return a directory of the cache. It need not exist."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "peili-tests", *names)


def is_complete(directory: Path, programs: Collection[str]) -> bool:
    """Return whether all programs are in `directory`."""
    return all(os.access(directory / program, os.X_OK) for program in programs)


def fetch(description: str, target: Path, programs: Collection[str], get: Callable[[Path], None]) -> None:
    """Call `get` with a temporary directory, and move the programs to `target` only if all of them are there.

    An error is printed, not raised.

    Args:
        description: What the programs are.
        target: The directory of the programs.
        programs: Their names.
        get: Puts them somewhere below the folder ``out`` of the directory that it is given. It may raise OSError and
            subprocess.CalledProcessError.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=target.parent) as scratch:
            get(Path(scratch))
            (found := Path(scratch, "programs")).mkdir()
            for program in programs:
                shutil.move(_find(program, Path(scratch, "out")), found / program)
            shutil.rmtree(target, ignore_errors=True)
            found.rename(target)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{description}: {_reason(error)}", flush=True)


def run(command: Sequence[str], directory: Path) -> None:
    """Run `command` in `directory`, without cgo, so that Go needs no C compiler.

    Raises:
        OSError: The command can't be started.
        subprocess.CalledProcessError: The command failed. The error has its output.
    """
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    subprocess.run(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
    )


def _find(program: str, directory: Path) -> Path:
    for file in directory.rglob(program):
        if file.is_file() and os.access(file, os.X_OK):
            return file
    raise FileNotFoundError(f"it contains no {program}")


def _reason(error: Exception) -> str:
    output = getattr(error, "output", None)
    return f"{error}\n{output.decode(errors='replace')}" if output else str(error)
