"""Builds the programs of Kubernetes that the tests run. `tests/prepare.py` calls this.

They are built once from Go's module proxy into a cache, from the module in tests/kubernetes/programs. This module needs
only the standard library.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tests.program_cache import cache_directory, fetch, is_complete, run

MODULE = Path(__file__).parent / "kubernetes/programs"
PACKAGES = {
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "helm": "helm.sh/helm/v3/cmd/helm",
}


def program(name: str) -> str:
    """Return the path of one of `PACKAGES`."""
    return str(_directory() / name)


def has_programs() -> bool:
    """Return whether all programs are built."""
    return is_complete(_directory(), PACKAGES)


def fetch_programs() -> list[str]:
    """Build the programs if they are missing, as far as possible. Return descriptions of those that are missing."""
    if not has_programs():
        fetch("programs of Kubernetes", _directory(), PACKAGES, _build)
    return [] if has_programs() else ["programs of Kubernetes"]


def _build(scratch: Path) -> None:
    if shutil.which("go") is None:
        raise OSError("Go is not installed")
    print(f"building {', '.join(PACKAGES)}, which takes minutes", flush=True)
    for name in ("go.mod", "go.sum"):
        shutil.copy(MODULE / name, scratch)
    (scratch / "out").mkdir()
    version = f"-X k8s.io/component-base/version.gitVersion={_version()}"
    flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", f"-s -w {version}"]
    run(["go", "build", *flags, "-o", f"{scratch / 'out'}{os.sep}", *PACKAGES.values()], scratch)


def _directory() -> Path:
    return cache_directory("kubernetes", _version())


def _version() -> str:
    [version] = re.findall(r"^\tk8s\.io/kubernetes (v\S+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    return str(version)
