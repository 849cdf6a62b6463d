"""What every test module shares. Fixtures of the laboratory are in tests/lab, beside what they build."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# Nothing that is tested by properties has to be done in a certain time, and a busy machine draws examples slowly, too.
settings.register_profile("peili", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("peili")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With PEILI_ALL_TESTS set, as in CI, a skipped test fails the run: it proved nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if "PEILI_ALL_TESTS" in os.environ and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio only: uvicorn's sockets and grpc.aio are asyncio's."""
    return "asyncio"
