"""Settings and fixtures for all tests. The laboratory of the end-to-end tests is in tests/lab."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# So that a failure there shows its values. Here, because tests of the bench import it before those in tests/e2e.
pytest.register_assert_rewrite("tests.e2e.checks")

# A configuration of this machine is not read.
os.environ.setdefault("PEILI_CONFIG", "")

# No property is about time, and a busy machine generates examples slowly. Each run has the same examples, so that only
# a change makes a test fail. `--hypothesis-profile=random` looks for further ones.
_ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("peili", _ANY_SPEED, derandomize=True)
settings.register_profile("random", _ANY_SPEED, max_examples=2000)
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
"""The files and folders that take longest, the longest first. Most of their tests need much of the processors."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the slow files evenly over the others, of which most tests wait. So the processors are busy all the time.

    A worker runs whole files. A run with several workers keeps this order (`--no-loadscope-reorder`).
    """
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    slow = sorted((file for file in files if _slowness(file) < len(SLOW)), key=_slowness)
    others = [file for file in files if _slowness(file) == len(SLOW)]
    beside = len(others) * 4 // (5 * max(1, len(slow)))  # a fifth of the others is left when the last slow file starts
    order: list[str] = []
    for number, file in enumerate(slow):
        order += [file, *others[number * beside : (number + 1) * beside]]
    order += others[len(slow) * beside :]
    items[:] = [item for file in order for item in files[file]]


def _slowness(file: str) -> int:
    return next((number for number, path in enumerate(SLOW) if file.startswith(path)), len(SLOW))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a skipped test fail the run if PEILI_ALL_TESTS is set, as in CI."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if "PEILI_ALL_TESTS" in os.environ and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only. uvicorn and grpc.aio need it."""
    return "asyncio"
