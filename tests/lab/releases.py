"""Which versions of containerd a test runs on.

A test names those that it runs on in every run: together, the tests try every version in every way (tests/lab/
test_releases.py sees to it) and still end soon. PEILI_CONTAINERD=NAME runs every test on that version instead;
`python -m bench containerd` does so with each.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.containerds import BUILT, INSTALLED, SUITES, Release, releases

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

NAMES = (INSTALLED, *SUITES, *BUILT)
"""All that there may be: Debian's own, two of its later releases, and two that Go builds."""


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
