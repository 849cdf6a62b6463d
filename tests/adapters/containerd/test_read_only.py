"""A folder for hosts.toml on a file system that is read-only around it, as a confined service and a pod have it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peili.adapters.containerd import HostsFiles

PROGRAM = """\
import sys
from peili.adapters.containerd import HostsFiles
outcome = getattr(HostsFiles("http://127.0.0.1:5050", config_path=[sys.argv[2]]), sys.argv[1])()
print(*outcome.changes, *outcome.problems, sep="\\n")
"""
MOUNT = 'mount --bind "$1" "$1" && mount --bind "$2" "$2" && mount -o remount,bind,ro "$1" && shift 2 && exec "$@"'


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts, which root may")
def test_nothing_is_written_outside_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "etc/certs.d"
    folder.mkdir(parents=True)

    def confined(action: str) -> str:
        there = ["unshare", "--mount", "sh", "-c", MOUNT, "sh", str(tmp_path / "etc"), str(folder)]
        command = [*there, sys.executable, "-c", PROGRAM, action, str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert confined("apply") == f"created {folder}/_default/hosts.toml"
    assert [each.is_first for each in HostsFiles("http://127.0.0.1:5050", config_path=[folder]).show()] == [True]
    assert confined("remove") == f"removed {folder}/_default/hosts.toml"
    assert list(folder.iterdir()) == []
