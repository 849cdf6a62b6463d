"""What was logged in a test."""

from __future__ import annotations

import logging

import pytest


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings and errors."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
