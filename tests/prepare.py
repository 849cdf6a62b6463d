"""Installs what the tests need in addition to Python packages. `make test` runs it.

As root on Debian or Ubuntu, it installs the missing packages. Elsewhere it names them in one line, and the tests that
need them are skipped. Further releases of containerd (containerd_releases.py) and the programs of Kubernetes
(kubernetes_programs.py) go into a cache. This module needs only the standard library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.containerd_releases import fetch_releases
from tests.kubernetes_programs import fetch_programs
from tests.program_cache import SEARCH_PATH

PACKAGES = {
    "containerd": ("containerd", "ctr"),
    "runc": ("runc",),
    "iproute2": ("ip", "tc"),
    "docker-registry": ("docker-registry",),
    "skopeo": ("skopeo",),
    "systemd": ("systemd-analyze", "systemd-socket-activate"),
    "buildah": ("buildah",),
    "yamllint": ("yamllint",),
    "openssl": ("openssl",),
    "curl": ("curl",),
    "nginx-light": ("nginx",),
    "zsh": ("zsh",),
    "nsd": ("nsd",),
    "prometheus": ("prometheus", "promtool"),
    "chromium": ("chromium",),
    "etcd-server": ("etcd",),
    "podman": ("podman",),
    "docker.io": ("dockerd", "docker"),
}
"""Names of Debian packages, each with the commands that it provides."""

POLICY = Path("/usr/sbin/policy-rc.d")


def missing_packages(packages: Mapping[str, Collection[str]] = PACKAGES) -> list[str]:
    """Return the packages that lack a command on this machine."""
    return [
        package
        for package, commands in packages.items()
        if any(shutil.which(command, path=SEARCH_PATH) is None for command in commands)
    ]


def install_missing(packages: Mapping[str, Collection[str]]) -> list[str]:
    """Install the packages that are missing, as far as possible. Return those that are still missing."""
    missing = missing_packages(packages)
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {' '.join(missing)}", flush=True)
        with services_not_started():
            install(missing)
        missing = missing_packages(packages)
    return missing


def main() -> int:
    missing = [*install_missing(PACKAGES), *fetch_releases(), *fetch_programs()]
    if missing:
        print(f"missing, so some tests will be skipped: {', '.join(missing)}", file=sys.stderr)
    return 1 if missing and "PEILI_ALL_TESTS" in os.environ else 0


def install(packages: list[str]) -> None:
    """Install packages with apt-get. Errors are printed, not raised: the caller checks what is still missing."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        command = ["apt-get", "-qq", "-o", "Acquire::Retries=3", *arguments]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            sys.stderr.buffer.write(done.stdout)


@contextmanager
def services_not_started() -> Generator[None]:
    """Keep packages from starting their daemons when they are installed. The tests start their own daemons."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


if __name__ == "__main__":
    sys.exit(main())
