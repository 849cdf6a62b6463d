"""Which containerd releases a test runs on.

Each test names the releases on which it runs by default. Together, the tests cover every release, and still end soon.
PEILI_CONTAINERD=NAME runs every test on that release instead; `python -m bench containerd` does this for each release.
"""

from __future__ import annotations

import os

import pytest
from _pytest.mark import ParameterSet
from tests.containerd_releases import BUILT_VERSIONS, DEBIAN_SUITES, INSTALLED, Release, available_releases

__all__ = ["CONTAINERD_1", "RELEASE_NAMES", "ParameterSet", "each_release", "release"]

RELEASE_NAMES = (INSTALLED, *DEBIAN_SUITES, *BUILT_VERSIONS)
"""The names of all releases: the installed package, two packages of later Debian releases, and two built with Go."""

CONTAINERD_1 = (INSTALLED, "trixie")
"""The names of the releases that are containerd 1.x."""


def release(name: str | None = None) -> Release:
    """Return the release called `name`. The default is the one in PEILI_CONTAINERD, else the installed one.

    Raises:
        LookupError: The release is not on this machine.
    """
    wanted = name or os.environ.get("PEILI_CONTAINERD") or INSTALLED
    for each in available_releases():
        if each.name == wanted:
            return each
    raise LookupError(f"containerd ({wanted}) is missing; `make test` tries to get these: {', '.join(RELEASE_NAMES)}")


def each_release(*names: str) -> list[ParameterSet]:
    """Return pytest parameters for a test or fixture that runs on the releases called `names`.

    PEILI_CONTAINERD replaces the names. The parameter of a missing release is marked as skipped.
    """
    wanted = os.environ.get("PEILI_CONTAINERD")
    available = {each.name for each in available_releases()}
    return [
        pytest.param(name, marks=[] if name in available else [pytest.mark.skip(reason=f"missing: containerd {name}")])
        for name in ([wanted] if wanted else names)
    ]
