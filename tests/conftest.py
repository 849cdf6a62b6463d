"""Settings and fixtures for all tests. The laboratory of the end-to-end tests is in tests/lab."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# So that a failure there shows its values. Here, because tests of the bench import it before those in tests/e2e.
pytest.register_assert_rewrite("tests.e2e.checks")

# A configuration of this machine is not read.
os.environ.setdefault("PEILI_CONFIG", "")

# No property is about time, and a busy machine generates examples slowly.
settings.register_profile("peili", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("peili")


SLOW = (
    "tests/bench/test_command.py",
    "tests/adapters/containerd/doctor/test_matrix.py",
    "tests/e2e/test_hosts_toml.py",
    "tests/e2e/test_private_images.py",
    "tests/e2e/test_pull_from_peer.py",
    "tests/e2e/test_private_content.py",
    "tests/differential/",
    "tests/e2e/",
    "tests/kubernetes/",
    "tests/conformance/",
    "tests/stores/containerd/",
    "tests/packaging/",
    "tests/bench/",
    "tests/adapters/",
    "tests/embedding/",
)
"""The files and folders that take longest. Their tests run first, so that no worker has one left at the end.

A worker runs whole files. So the longest files are first, and those that wait run beside those that compute.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the slow tests to the front. A run with several workers keeps this order (`--no-loadscope-reorder`)."""
    items.sort(key=lambda item: next((n for n, path in enumerate(SLOW) if item.nodeid.startswith(path)), len(SLOW)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a skipped test fail the run if PEILI_ALL_TESTS is set, as in CI."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if "PEILI_ALL_TESTS" in os.environ and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only. uvicorn and grpc.aio need it."""
    return "asyncio"
