"""Installs the programs that ours is measured against, as root on Debian or Ubuntu; `make bench` runs it. Elsewhere a
line names what is missing, and `python -m bench` leaves out the rows that need it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping

from tests.containerd_releases import fetch_releases
from tests.prepare import PACKAGES as TESTS
from tests.prepare import install_missing, missing_packages

PACKAGES = {name: TESTS[name] for name in ("nginx-light", "containerd", "docker-registry", "openssl", "skopeo")}
"""Debian's package names, and the commands that show that one is there."""

NEEDS: Mapping[str, Collection[str]] = {
    "serve": ("nginx-light", "openssl"),
    "relay": ("nginx-light",),
    "requests": ("docker-registry",),
    "misses": ("docker-registry",),
    "health": (),
    "flood": (),
    "pull": ("containerd", "docker-registry", "skopeo"),
    "parallel": ("containerd", "docker-registry", "skopeo"),
    "memory": ("containerd", "docker-registry"),
    "growth": (),
    "containerd": ("containerd", "docker-registry", "skopeo"),
}
"""Every row, in the order of the table, and the packages without which it can't be measured."""


def missing_for(row: str) -> list[str]:
    """The packages that `row` needs and that are not there."""
    return [package for package in missing_packages(PACKAGES) if package in NEEDS[row]]


def main() -> int:
    missing = [*install_missing(PACKAGES), *fetch_releases()]
    if missing:
        print(f"missing, so some rows will be left out: {', '.join(missing)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
