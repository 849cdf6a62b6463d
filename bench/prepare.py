"""Installs the programs of the references. `make bench` runs it.

This needs root on Debian or Ubuntu. Elsewhere it names the missing programs in one line, and `python -m bench` leaves
out the rows that need them.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping

from tests.containerd_releases import fetch_releases
from tests.prepare import PACKAGES as TESTS
from tests.prepare import install_missing, missing_packages

PACKAGES = {
    name: TESTS[name] for name in ("nginx-light", "containerd", "docker-registry", "openssl", "skopeo", "iproute2")
}
"""Names of Debian packages, each with the commands that it provides."""

NEEDS: Mapping[str, Collection[str]] = {
    "serve": ("nginx-light", "openssl"),
    "relay": ("nginx-light",),
    "requests": ("docker-registry",),
    "misses": ("docker-registry",),
    "health": (),
    "flood": (),
    "pull": ("containerd", "docker-registry", "skopeo"),
    "parallel": ("containerd", "docker-registry", "skopeo"),
    "coldstart": ("containerd", "docker-registry", "skopeo", "iproute2"),
    "faults": ("containerd", "docker-registry", "skopeo", "iproute2"),
    "memory": ("containerd", "docker-registry"),
    "growth": (),
    "home": (),
    "containerd": ("containerd", "docker-registry", "skopeo"),
}
"""The packages that each row needs, in the order of the table."""


def missing_for(row: str) -> list[str]:
    """Return the packages that `row` needs and that are not installed."""
    return [package for package in missing_packages(PACKAGES) if package in NEEDS[row]]


def main() -> int:
    missing = [*install_missing(PACKAGES), *fetch_releases()]
    if missing:
        print(f"missing, so some rows will be left out: {', '.join(missing)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
