"""Runs the real systemd for the tests, with the units in packaging/systemd.

It is a user instance of root in its own namespaces on one node of the laboratory, so it does not affect the systemd of
the machine.
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

# These settings of the service are changed: the path of the program, the mounts that a container may not create, and
# access to /home and /tmp, where the checkout may be. A lower limit on starts and a shorter watchdog make the tests
# faster; the watchdog is long enough for a busy machine.
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
# systemd checks whether the machine was booted with it. With PID 1 it would become the system instance, so the shell
# keeps that PID and waits for it. systemd gets a copy of /etc, as on a machine with containerd 2 and Docker.
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
    """A systemd on `node`, with its files below `directory`. Its sockets listen when it is entered."""

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
        # The path of the checkout may have characters that would need quotes in a unit.
        (directory / "installed").symlink_to(sys.prefix)
        peili = directory / "installed/bin/peili"
        overrides = _OVERRIDES.format(peili=peili, config=config, log=self._service_log)
        (self._units / "peili.service.d/test.conf").write_text(overrides)
        (self._units / "default.target").write_text(_TARGET)

    def __enter__(self) -> Self:
        # Not `ip netns exec`: it mounts its own /sys, without control groups.
        enter = ["nsenter", f"--net=/run/netns/{self._node.name}"]
        namespaces = ["unshare", "--mount", "--pid", "--cgroup", "--fork", "--kill-child", "--mount-proc"]
        variables = [f"SYSTEMD_UNIT_PATH={self._units}:", f"XDG_RUNTIME_DIR={self._runtime}"]
        command = [*enter, "env", *variables, *namespaces, "sh", "-c", _BOOT]
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
        self._process.kill()  # ends all processes in its namespaces

    def systemctl(self, *arguments: str) -> str:
        """Run systemctl. Returns its output. Raises CommandFailed."""
        return run([*self._inside(), "systemctl", "--user", "--no-pager", *arguments]).decode()

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit; an empty text if systemd does not answer yet."""
        command = [*self._inside(), "systemctl", "--user", "show", "--value", "--property", name, unit]
        return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False).stdout.strip()

    def status_of_service(self) -> dict[str, str]:
        """Return ``/proc/PID/status`` of the main process of the service (proc(5))."""
        text = run([*self._inside(), "cat", f"/proc/{self.show('peili.service', 'MainPID')}/status"]).decode()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}

    def read(self, path: str) -> str:
        """Read a file as the processes in the namespaces see it. Raises CommandFailed if there is none."""
        return run([*self._inside(), "cat", path]).decode()

    def log(self) -> str:
        """Return the output of systemd and of the service."""
        files = (self._boot_log, self._service_log)
        return "\n".join(each.read_text(errors="replace") for each in files if each.exists())

    def _inside(self) -> list[str]:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        target = children[0] if children else str(self._process.pid)
        return ["nsenter", "--target", target, "--mount", "--pid", "env", f"XDG_RUNTIME_DIR={self._runtime}"]
