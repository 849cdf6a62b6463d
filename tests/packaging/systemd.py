"""Runs a real systemd for the tests, with the units of packaging/systemd.

It runs as root's user instance, in namespaces of its own on one host of the laboratory, so that the machine's own, if
it has one, hears nothing of it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.network import Node
from tests.lab.processes import ENVIRONMENT, Process, run, wait_for

UNITS = Path(__file__).parents[2] / "packaging/systemd"

# What is changed of the service: where it is installed, and the mounts that a container may not make. The checkout
# may lie below /home or /tmp. Fewer starts, and a shorter watchdog, for the tests' patience; not so
# short that a busy machine is taken for a process that hangs.
_OVERRIDES = """\
[Unit]
StartLimitBurst=2
[Service]
ExecStart=
ExecStart={peili} serve --config {config}
StandardError=append:{log}
WatchdogSec=8
ProtectHome=no
PrivateTmp=no
ProtectKernelLogs=no
ProtectKernelTunables=no
"""
_TARGET = "[Unit]\nDescription=What the tests start\nWants=peili.socket peili-peer.socket\n"
# systemd asks whether the machine was booted with it. It would take itself for the system's with a PID of 1, which it
# would have if the shell did not wait for it.
# Of /etc it has a copy, which is as on a machine with containerd 2 and Docker, and gone afterwards.
_BOOT = """\
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/etc/upper /run/etc/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work /etc
rm -rf /etc/containerd /etc/docker
mkdir -p /etc/containerd/certs.d /etc/docker/certs.d
/usr/lib/systemd/systemd --user
exit
"""


class Systemd:
    """A systemd at `node`, with its files below `directory`. When it is entered, its sockets listen."""

    def __init__(self, node: Node, directory: Path, configuration: str) -> None:
        self._node = node
        self._runtime = directory / "runtime"
        self._boot_log = directory / "boot.log"
        self._units = directory / "units"
        self._service_log = directory / "peili.log"
        shutil.copytree(UNITS, self._units)
        for each in (self._runtime, self._units / "peili.service.d"):
            each.mkdir()
        self.config = config = directory / "peili.toml"
        config.write_text(configuration)
        # A unit would have to quote what the path of a checkout may have in it.
        (directory / "installed").symlink_to(sys.prefix)
        peili = directory / "installed/bin/peili"
        overrides = _OVERRIDES.format(peili=peili, config=config, log=self._service_log)
        (self._units / "peili.service.d/test.conf").write_text(overrides)
        (self._units / "default.target").write_text(_TARGET)

    def __enter__(self) -> Self:
        # Not `ip netns exec`: it mounts a /sys of its own, in which there are no control groups.
        there = ["nsenter", f"--net=/run/netns/{self._node.name}"]
        namespaces = ["unshare", "--mount", "--pid", "--cgroup", "--fork", "--kill-child", "--mount-proc"]
        variables = [f"SYSTEMD_UNIT_PATH={self._units}:", f"XDG_RUNTIME_DIR={self._runtime}"]
        command = [*there, "env", *variables, *namespaces, "sh", "-c", _BOOT]
        self._process = Process(command, self._boot_log)
        try:
            wait_for(lambda: self.show("peili.socket", "ActiveState") == "active", "systemd listens for peili")
        except AssertionError as error:
            error.add_note(self.log())
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # and with it all in its namespaces

    def systemctl(self, *arguments: str) -> str:
        """Run systemctl and return its output. Raises CommandFailed."""
        return run([*self._inside(), "systemctl", "--user", "--no-pager", *arguments]).decode()

    def show(self, unit: str, name: str) -> str:
        """A property of a unit; empty if systemd does not answer yet."""
        command = [*self._inside(), "systemctl", "--user", "show", "--value", "--property", name, unit]
        return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False).stdout.strip()

    def status_of_service(self) -> dict[str, str]:
        """The status of the service's main process (proc(5))."""
        text = run([*self._inside(), "cat", f"/proc/{self.show('peili.service', 'MainPID')}/status"]).decode()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}

    def read(self, path: str) -> str:
        """The content of a file as processes there see it. Raises CommandFailed if there is none."""
        return run([*self._inside(), "cat", path]).decode()

    def log(self) -> str:
        """The output of systemd and of the service."""
        files = (self._boot_log, self._service_log)
        return "\n".join(each.read_text(errors="replace") for each in files if each.exists())

    def _inside(self) -> list[str]:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        target = children[0] if children else str(self._process.pid)
        return ["nsenter", "--target", target, "--mount", "--pid", "env", f"XDG_RUNTIME_DIR={self._runtime}"]
