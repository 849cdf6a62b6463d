"""A program for test_interrupted.py that kills `apply` and `remove` before each of their changes to the file system.

It is called as ``python killed_runs.py DIRECTORY KIND`` and prints its findings as JSON. It is a separate process,
because it forks and therefore must not have other threads.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.trees import Snapshot, Tree, make_tree, snapshot

from peili.adapters.containerd import HostsFiles

MIRROR = "http://127.0.0.1:5050"
MIRRORED = b"server = 'https://s.example'\n[host.'https://m.example']\n"
TREES: dict[str, Tree] = {
    "nothing exists": {"etc": None},
    "an empty directory": {"etc/containerd/certs.d": None},
    "files": {
        "etc/containerd/certs.d/_default/hosts.toml": MIRRORED,
        "etc/containerd/certs.d/docker.io/hosts.toml": MIRRORED.rstrip(),
        "etc/containerd/certs.d/r_5000_/ca.crt": b"",
        "etc/containerd/certs.d/linked.example/hosts.toml": "../../kept.toml",
        "etc/containerd/kept.toml": MIRRORED,
    },
}
KILLED = 9
_CHANGE_EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.chown", "os.setxattr"}


def main(directory: Path, kind: str) -> dict[str, Any]:
    work, kept = directory / "work", directory / "kept"
    registries = ("ghcr.io", "docker.io", "r:5000", "linked.example", "_default") if kind == "files" else ()
    hosts = HostsFiles(MIRROR, config_path=[work / "etc/containerd/certs.d"], registries=registries)
    make_tree(kept / "before", TREES[kind])
    restore(kept / "before", work)
    hosts.apply()
    shutil.copytree(work, kept / "after", symlinks=True)
    ends = {"apply": snapshot(work)}
    restore(kept / "before", work)
    ends["remove"] = snapshot(work)
    actions: dict[str, Callable[[], Any]] = {"apply": hosts.apply, "remove": hosts.remove}
    points: dict[str, int] = {}
    wrong: list[str] = []
    for name, start in (("apply", kept / "before"), ("remove", kept / "after")):
        point = 0
        while True:
            restore(start, work)
            if not killed(actions[name], point):
                break
            wrong += [f"{name} killed at {point}: {each}" for each in unexpected(work, ends)]
            restore(work, kept / "killed")
            for then, action in actions.items():
                restore(kept / "killed", work)
                problems = action().problems
                if problems or snapshot(work) != ends[then]:
                    wrong.append(f"{name} killed at {point}, then {then}: {problems} {sorted(snapshot(work))}")
            point += 1
        points[name] = point
    return {"points": points, "wrong": wrong}


def unexpected(work: Path, ends: dict[str, Snapshot]) -> list[str]:
    """Return what containerd would see that is neither the old nor the new state of a registry."""
    seen = [name for name in snapshot(work) if "peili~" not in name]
    known = {name: [end[name] for end in ends.values() if name in end] for name in {*ends["apply"], *ends["remove"]}}
    now = snapshot(work)
    return [name for name in seen if now[name] not in known.get(name, [])] + [
        f"{name} has no hosts.toml"
        for name in seen
        if name not in ends["remove"] and Path(name).parent.name == "certs.d" and f"{name}/hosts.toml" not in now
    ]


def restore(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def killed(action: Callable[[], Any], point: int) -> bool:
    """Run `action` in a child that exits before its change number `point`. Return whether there was such a change."""
    child = os.fork()
    if child == 0:
        left = point

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            opens = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & os.O_CREAT)
            if event in _CHANGE_EVENTS or opens:
                if left == 0:
                    os._exit(KILLED)
                left -= 1

        sys.addaudithook(count)
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == KILLED


if __name__ == "__main__":
    os.fsync = lambda fd: None  # only the process is killed, so waiting for the disk tests nothing
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
