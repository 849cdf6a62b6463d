"""Only the directory of the hosts.toml files is writable, as in a confined service or a pod."""

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


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_apply_and_remove_write_nothing_outside_the_directory(tmp_path: Path) -> None:
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
