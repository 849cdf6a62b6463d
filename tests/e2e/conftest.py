"""Hooks for all end-to-end tests: they skip if a command is missing, and the report of a failure has the logs."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from tests.lab.lab import Lab, missing_commands


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests if a command of the laboratory is not installed. `make test` installs the commands if it may."""
    missing = missing_commands()
    for item in items:
        if missing and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=f"not installed: {' '.join(missing)}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the log of each host to the report of a failed test."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        labs = [each for each in item.funcargs.values() if isinstance(each, Lab)]
        report.sections += [("peili on each host", lab.logs()) for lab in labs]
    return report
