"""Stores only read: they open no file for writing, and the one change that containerd is asked for is `Abort`."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.guarded_grpc import aio

ROOT = Path(__file__).parents[2]

READING = {"Get", "Info", "List", "ListStatuses", "Plugins", "Read", "Subscribe", "Version"}
"""The methods of containerd's API that change nothing."""


def changes(kind: str) -> list[str]:
    """Return what the store called `kind` changed in the file system while it ran through its conformance kit."""
    command = [sys.executable, "-B", "-W", "ignore", "-m", "tests.stores.recorded_changes", kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", ["memory", "oci-layout", "containerd", "containerd-api"])
def test_a_store_opens_nothing_for_writing(kind: str) -> None:
    assert changes(kind) == []


def test_a_store_that_writes_is_found() -> None:
    found = changes("writing")
    assert {line.rpartition("/")[2] for line in found} == {"used"}
    assert any(line.startswith("open for writing: ") for line in found)


async def methods_of_containerd(monkeypatch: pytest.MonkeyPatch, directory: Path) -> set[str]:
    """Return the names of all methods of containerd's API that the store can call."""
    methods: set[str] = set()
    insecure_channel = aio.insecure_channel

    class Channel:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._channel = insecure_channel(*arguments, **options)

        def __getattr__(self, name: str) -> Any:
            member = getattr(self._channel, name)
            return partial(self._note, member) if name.partition("_")[0] in ("unary", "stream") else member

        def _note(self, create: Any, method: str, *arguments: Any) -> Any:
            methods.add(method.rpartition("/")[2])
            return create(method, *arguments)

    monkeypatch.setattr(aio, "insecure_channel", Channel)
    async with ContainerdApi(directory / "socket"):
        pass
    return methods


@pytest.mark.anyio
async def test_containerd_is_asked_for_no_change_but_to_abort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    methods = await methods_of_containerd(monkeypatch, tmp_path)
    assert methods - READING == {"Abort"}
