"""Gets the containerd releases that the tests run in addition to the installed one. `tests/prepare.py` calls this.

Each release is unpacked or built into its own directory of a cache, unless it is there already. Nothing is installed.
This module needs only the standard library.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.program_cache import SEARCH_PATH, cache_directory, fetch, is_complete, run

PROGRAMS = ("containerd", "ctr")
INSTALLED = "installed"
DEBIAN_SUITES = ("trixie", "forky")
"""The Debian releases whose containerd package is unpacked."""

BUILT_VERSIONS = ("2.1.4", "2.4.2")
"""The versions that are built with Go: the last one whose parallel ranges have no fallback, and the newest one."""

_MODULE = "github.com/containerd/containerd/v2"


@dataclass(frozen=True)
class Release:
    """One version of containerd.

    Attributes:
        name: The name in the ids of tests, such as `installed`, `trixie` or `2.1.4`.
        directory: The directory of its programs.
    """

    name: str
    directory: Path

    def program(self, name: str) -> str:
        """Return the path of `containerd` or `ctr`."""
        return str(self.directory / name)

    @property
    def version(self) -> str:
        """The version that `containerd --version` prints, such as ``1.7.24~ds1``.

        Raises:
            OSError: The program can't be started.
            subprocess.CalledProcessError: The program failed.
        """
        done = subprocess.run([self.program("containerd"), "--version"], capture_output=True, text=True, check=True)
        return done.stdout.split()[2].removeprefix("v")


def available_releases() -> list[Release]:
    """Return the releases that are on this machine. The installed one is the first."""
    found: list[Release] = []
    installed = shutil.which("containerd", path=SEARCH_PATH)
    if installed and shutil.which("ctr", path=str(Path(installed).parent)):
        found.append(Release(INSTALLED, Path(installed).parent))
    names = (*DEBIAN_SUITES, *BUILT_VERSIONS)
    return found + [Release(name, _directory(name)) for name in names if is_complete(_directory(name), PROGRAMS)]


def fetch_releases() -> list[str]:
    """Get the releases that are missing, as far as possible. Return descriptions of those that are still missing."""
    missing: list[str] = []
    for names, description, get in ((DEBIAN_SUITES, "of Debian {}", _unpack), (BUILT_VERSIONS, "{}", _build)):
        for name in names:
            if not is_complete(_directory(name), PROGRAMS):
                fetch(f"containerd {name}", _directory(name), PROGRAMS, partial(get, name))
            if not is_complete(_directory(name), PROGRAMS):
                missing.append("containerd " + description.format(name))
    return missing


def _unpack(suite: str, scratch: Path) -> None:
    """Unpack the package of the Debian release `suite` into `scratch`/out.

    The package comes from the source that apt uses on this machine. apt's own state does not change.
    """
    source = _debian_source()
    if source is None:
        raise OSError("apt has no Debian source on this machine")
    print(f"unpacking containerd of Debian {suite}", flush=True)
    sources = scratch / "sources.list"
    sources.write_text(source.format(suite=suite))
    for each in ("lists/partial", "cache/archives/partial", "out"):
        (scratch / each).mkdir(parents=True)
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::Lists": scratch / "lists",
        "Dir::State::status": "/dev/null",  # the package installed on this machine must not be a candidate
        "Dir::Cache": scratch / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "APT::Sandbox::User": "root",  # only this user can enter the directory
    }
    apt = ["apt-get", "-qq", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    run([*apt, "update"], scratch)
    run([*apt, "download", "containerd"], scratch)
    [package] = scratch.glob("containerd_*.deb")
    run(["dpkg", "-x", str(package), str(scratch / "out")], scratch)


def _debian_source() -> str | None:
    """Return a line for sources.list with the placeholder `{suite}`, or None.

    It has the URI and the keys with which apt gets Debian packages on this machine.
    """
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
    """Return the keyring that a file of apt's sources names. Without one, apt uses those that it trusts in general."""
    try:
        match = re.search(r"signed-by\s*[:=]\s*(/[^\s,\]]+)", sources.read_text(), re.IGNORECASE)
    except OSError:
        return None
    return match[1] if match else None


def _build(version: str, scratch: Path) -> None:
    """Build exactly this version from Go's module proxy into `scratch`/out.

    `go install` refuses containerd, because its go.mod has exclude directives. A temporary module requires it instead.
    """
    if shutil.which("go") is None:
        raise OSError("Go is not installed")
    print(f"building containerd {version}, which takes minutes", flush=True)
    packages = [f"{_MODULE}/cmd/{program}" for program in PROGRAMS]
    run(["go", "mod", "init", "peili.test/containerd"], scratch)
    run(["go", "get", *(f"{package}@v{version}" for package in packages)], scratch)
    (scratch / "out").mkdir()
    flags = ["-tags", "no_btrfs", "-buildvcs=false", "-ldflags", f"-s -w -X {_MODULE}/version.Version=v{version}"]
    run(["go", "build", *flags, "-o", f"{scratch / 'out'}{os.sep}", *packages], scratch)


def _directory(name: str) -> Path:
    return cache_directory("containerd", name)
