"""Gets what the tests need beyond Python packages: `make test` runs it. Needs nothing but the standard library.

As root on Debian or Ubuntu what is missing is installed; elsewhere one line names it, and the tests that need it skip.
Other versions of containerd than the installed one are put into a cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.containerds import SEARCH_PATH, provide_releases

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
}
"""Debian's package names, and the commands that show that one is there."""

POLICY = Path("/usr/sbin/policy-rc.d")


def missing_packages(packages: Mapping[str, Collection[str]] = PACKAGES) -> list[str]:
    """Those of `packages` of which a command can't be found."""
    return [
        package
        for package, commands in packages.items()
        if any(shutil.which(command, path=SEARCH_PATH) is None for command in commands)
    ]


def provide(packages: Mapping[str, Collection[str]]) -> list[str]:
    """Install what is missing of `packages`, where that is possible; what is missing then."""
    missing = missing_packages(packages)
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {' '.join(missing)}", flush=True)
        with services_kept_down():
            install(missing)
        missing = missing_packages(packages)
    return missing


def main() -> int:
    missing = [*provide(PACKAGES), *provide_releases()]
    if missing:
        print(f"missing, so some tests will be skipped: {', '.join(missing)}", file=sys.stderr)
    return 1 if missing and "PEILI_ALL_TESTS" in os.environ else 0


def install(packages: list[str]) -> None:
    """Ask apt-get for them; what it could not do is seen by looking again."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        command = ["apt-get", "-qq", "-o", "Acquire::Retries=3", *arguments]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            sys.stderr.buffer.write(done.stdout)


@contextmanager
def services_kept_down() -> Generator[None]:
    """Packages that bring a daemon start it on installation; the tests start their own, and want no other."""
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
