"""If the system's limits leave nothing of inotify, the store works, and the log says what that costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.stores.containerd.namespace import Namespace
from tests.support.user_namespaces import with_limit

from peili.stores.containerd.inotify_limits import InotifyLimit

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "limit"),
    [("max_inotify_instances", InotifyLimit.INSTANCES), ("max_inotify_watches", InotifyLimit.WATCHES)],
)
def test_a_limit_that_is_reached_is_logged_once_and_may_be_raised(
    namespace: Namespace, name: str, limit: InotifyLimit
) -> None:
    module = "tests.stores.containerd.without_inotify"
    command = [sys.executable, "-m", module, str(namespace.containerd.socket), namespace.name, name]
    done = subprocess.run(
        with_limit(name, 0, command), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "inotify" in line]
    assert lines == [f"WARNING {limit.cost}; {limit.fix}"]


def test_the_fix_is_higher_than_the_limit() -> None:
    for limit in InotifyLimit:
        value = int(Path("/proc/sys", limit.setting.replace(".", "/")).read_text())
        assert f"{limit.setting} = {value}" in limit.cost
        assert int(limit.fix.rpartition("=")[2]) > value
