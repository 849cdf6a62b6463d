"""Which versions of containerd a test runs on.

A test names those that it runs on in every run. Together the tests try every version in most ways and still end soon.
PEILI_CONTAINERD=NAME runs each test on that version instead; `python -m bench containerd` does so with each version.
"""

from __future__ import annotations

import os

import pytest
from _pytest.mark import ParameterSet
from tests.containerds import BUILT, INSTALLED, SUITES, Release, releases

__all__ = ["NAMES", "VERSIONS_1", "ParameterSet", "on", "release"]

NAMES = (INSTALLED, *SUITES, *BUILT)
"""All that there may be: Debian's own, two of its later releases, and two that Go builds."""

VERSIONS_1 = (INSTALLED, "trixie")
"""Those that are containerd 1.x."""


def release(name: str | None = None) -> Release:
    """The release called `name`, else the one that the environment asks for, else the installed one.

    Raises LookupError with what is missing.
    """
    wanted = name or os.environ.get("PEILI_CONTAINERD") or INSTALLED
    for each in releases():
        if each.name == wanted:
            return each
    raise LookupError(f"containerd ({wanted}) is not there; `make test` gets it where it may: {', '.join(NAMES)}")


def on(*names: str) -> list[ParameterSet]:
    """Parameters for a test or a fixture that runs on the releases called `names`; a missing one is skipped."""
    wanted = os.environ.get("PEILI_CONTAINERD")
    there = {each.name for each in releases()}
    return [
        pytest.param(name, marks=[] if name in there else [pytest.mark.skip(reason=f"not there: containerd {name}")])
        for name in ([wanted] if wanted else names)
    ]
