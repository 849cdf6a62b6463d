"""Gets the versions of containerd that the tests run besides the installed one. `tests/prepare.py` calls it. Needs
nothing but the standard library.

Each version is unpacked or built into a folder of its own in a cache, which is looked at first. None is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("containerd", "ctr")
INSTALLED = "installed"
SUITES = ("trixie", "forky")
"""Debian's releases whose containerd is unpacked."""

BUILT = ("2.1.4", "2.4.2")
"""What Go builds: the last version whose parallel ranges have no fallback, and the newest."""

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
"""containerd may live where only root's PATH leads."""

_MODULE = "github.com/containerd/containerd/v2"


@dataclass(frozen=True)
class Release:
    """One version of containerd: `name` is what tests are called by, `directory` holds its programs."""

    name: str
    directory: Path

    def program(self, name: str) -> str:
        """The path of `containerd` or `ctr`."""
        return str(self.directory / name)

    @property
    def version(self) -> str:
        """What it says of itself, as ``1.7.24~ds1``. Raises OSError, subprocess.CalledProcessError."""
        said = subprocess.run([self.program("containerd"), "--version"], capture_output=True, text=True, check=True)
        return said.stdout.split()[2].removeprefix("v")


def releases() -> list[Release]:
    """What is there, the installed one first."""
    found: list[Release] = []
    installed = shutil.which("containerd", path=SEARCH_PATH)
    if installed and shutil.which("ctr", path=str(Path(installed).parent)):
        found.append(Release(INSTALLED, Path(installed).parent))
    return found + [Release(name, _directory(name)) for name in (*SUITES, *BUILT) if _complete(name)]


def provide_releases() -> list[str]:
    """Get what is missing, where that is possible. What is missing then, as a person would call it."""
    missing: list[str] = []
    for names, what, get in ((SUITES, "of Debian {}", _unpack), (BUILT, "{}", _build)):
        for name in names:
            if not _complete(name):
                _try(name, get)
            if not _complete(name):
                missing.append("containerd " + what.format(name))
    return missing


def _try(name: str, get: Callable[[str, Path], None]) -> None:
    """Let `get` put the programs into a new folder, and move that to its place only when it has them all."""
    place = _directory(name)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=place.parent) as scratch:
            get(name, Path(scratch))
            (made := Path(scratch, "programs")).mkdir()
            for program in PROGRAMS:
                shutil.move(_found(program, Path(scratch, "out")), made / program)
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"containerd {name}: {_reason(error)}", flush=True)


def _found(program: str, directory: Path) -> Path:
    for file in directory.rglob(program):
        if file.is_file() and os.access(file, os.X_OK):
            return file
    raise FileNotFoundError(f"there is no {program} in it")


def _reason(error: Exception) -> str:
    output = getattr(error, "output", None)
    return f"{error}\n{output.decode(errors='replace')}" if output else str(error)


def _unpack(suite: str, scratch: Path) -> None:
    """Debian's package of another release, from where apt gets this machine's. apt's own state stays as it is."""
    source = _debian_source()
    if source is None:
        raise OSError("apt has no source of Debian's here")
    print(f"unpacking containerd of Debian {suite}", flush=True)
    sources = scratch / "sources.list"
    sources.write_text(source.format(suite=suite))
    for each in ("lists/partial", "cache/archives/partial", "out"):
        (scratch / each).mkdir(parents=True)
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::Lists": scratch / "lists",
        "Dir::State::status": "/dev/null",  # so that what is installed here is no candidate
        "Dir::Cache": scratch / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "APT::Sandbox::User": "root",  # the folder is this user's alone
    }
    apt = ["apt-get", "-qq", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    _run([*apt, "update"], scratch)
    _run([*apt, "download", "containerd"], scratch)
    [package] = scratch.glob("containerd_*.deb")
    _run(["dpkg", "-x", str(package), str(scratch / "out")], scratch)


def _debian_source() -> str | None:
    """A line for sources.list with `{suite}` in it: the URI and the keys with which apt gets Debian's packages here."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    wanted = ["Identifier: Packages", "Origin: Debian", "Label: Debian", "Component: main"]
    listing = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(SOURCESENTRY)", *wanted]
    lines = subprocess.run(listing, capture_output=True, text=True, check=False).stdout.splitlines()
    if not lines:
        return None
    uri, _, entry = lines[0].partition(" ")
    keys = _keys(Path(entry.rpartition(":")[0]))
    return f"deb {f'[signed-by={keys}] ' if keys else ''}{uri} {{suite}} main\n"


def _keys(sources: Path) -> str | None:
    """The keyring that a file of apt's sources names; without one, apt takes those that it trusts for all sources."""
    try:
        named = re.search(r"signed-by\s*[:=]\s*(/[^\s,\]]+)", sources.read_text(), re.IGNORECASE)
    except OSError:
        return None
    return named[1] if named else None


def _build(version: str, scratch: Path) -> None:
    """Exactly this version, from Go's module proxy.

    `go install` refuses it, as its go.mod has exclude directives. A module of our own that requires it is allowed.
    """
    if shutil.which("go") is None:
        raise OSError("Go is not installed")
    print(f"building containerd {version}, which takes minutes", flush=True)
    packages = [f"{_MODULE}/cmd/{program}" for program in PROGRAMS]
    _run(["go", "mod", "init", "peili.test/containerd"], scratch)
    _run(["go", "get", *(f"{package}@v{version}" for package in packages)], scratch)
    (scratch / "out").mkdir()
    flags = ["-tags", "no_btrfs", "-buildvcs=false", "-ldflags", f"-s -w -X {_MODULE}/version.Version=v{version}"]
    _run(["go", "build", *flags, "-o", f"{scratch / 'out'}{os.sep}", *packages], scratch)


def _run(command: Sequence[str], directory: Path) -> None:
    """Raises OSError, subprocess.CalledProcessError with its output."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}  # no C compiler is needed
    subprocess.run(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
    )


def _complete(name: str) -> bool:
    return all(os.access(_directory(name) / program, os.X_OK) for program in PROGRAMS)


def _directory(name: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "peili-tests", "containerd", name)
