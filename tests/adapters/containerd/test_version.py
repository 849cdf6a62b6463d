"""A containerd whose version cannot be parsed counts as one of unknown version; all else works as usual."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.directories import short_directory

from peili.adapters.containerd import ContainerdHosts, HostsFiles
from peili.adapters.containerd import version as version_module
from peili.adapters.containerd.version import installed_version
from peili.adapters.standalone.cli import main
from peili.mirror import Limits, Mirror
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

MIRROR = "http://127.0.0.1:5050"
UNPARSABLE = ("2.0-dev", "unknown")


@contextmanager
def containerd_of(version: str) -> Generator[Path]:
    """Yield the socket of a gRPC server that answers only the version request, with `version`."""
    import grpc  # noqa: PLC0415 - after peili, which sees to what gRPC does to children

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        return b"\x0a" + bytes([len(version)]) + version.encode()  # VersionResponse: version is 1

    service = "containerd.services.version.v1.Version"
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Version": grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    with short_directory() as directory:
        socket = directory / "containerd.sock"
        server.add_insecure_port(f"unix:{socket}")
        server.start()
        try:
            yield socket
        finally:
            server.stop(1).wait()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, the thread of the server may answer late."""
    monkeypatch.setattr(version_module, "_TIMEOUT", 60.0)


def written(root: Path) -> str:
    return (root / "_default/hosts.toml").read_text()


@pytest.mark.parametrize("version", UNPARSABLE)
def test_the_command_warns_and_writes_what_all_versions_read(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with containerd_of(version) as socket:
        arguments = ["--config-path", str(tmp_path), f"--set=store.address={socket}"]
        assert main(["hosts", "apply", *arguments]) == 0
        captured = capsys.readouterr()
        assert captured.out == f"created {tmp_path}/_default/hosts.toml\n"
        line = f"containerd's version is {version!a}, not a version number; peili writes what all versions read"
        assert captured.err == f"peili: {line}\n"
        assert "dial_timeout" not in written(tmp_path)
        assert main(["hosts", "apply", *arguments, "--containerd-version", "2.1.0"]) == 0
        assert capsys.readouterr().err == ""
        assert "dial_timeout" in written(tmp_path)


@pytest.mark.anyio
@pytest.mark.parametrize("version", UNPARSABLE)
async def test_peili_is_in_front_while_a_mirror_runs(
    version: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with containerd_of(version) as socket:
        extension = ContainerdHosts(HostsFiles(MIRROR, config_path=[tmp_path]), socket=socket)
        limits = Limits(start_timeout=60, stop_timeout=60)
        async with Mirror(MemoryStore(), MemoryRouter(), extensions=[extension], limits=limits) as mirror:
            assert mirror.readiness()["ContainerdHosts"]
            assert MIRROR in written(tmp_path)
    [warning] = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert warning.startswith(f"containerd's version is {version!a}, ")


def test_the_doctor_runs_its_other_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "blobs").mkdir()
    with containerd_of("unknown") as socket:
        flags = [f"--set=store.address={socket}", f'--set=store.content_path="{tmp_path}"', "--set=local.listen=:1"]
        assert main(["doctor", *flags]) == 1  # nothing listens at that door
    captured = capsys.readouterr().out
    assert "warn  containerd: its version is 'unknown'\n" in captured
    assert f"ok    content: peili reads it from {tmp_path}\n" in captured


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("program", "version"),
    [
        ("#!/bin/sh\necho containerd github.com/containerd/containerd 1.6.20 x", "1.6.20"),
        ("#!/bin/sh\necho containerd github.com/containerd/containerd 1.6.20 x\nsleep 600 & wait", "1.6.20"),
        ("#!/bin/sh\nyes containerd", None),
        ("#!/bin/sh\nyes containerd | tr -d '\\n'", None),
        ("#!/bin/sh\nexit 1", None),
        ("#!/no/such/interpreter", None),
        ("no program", None),
    ],
)
async def test_the_installed_program_may_do_anything(
    program: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that can't be run is as none. One that does not end is killed, with its children."""
    (tmp_path / "containerd").write_text(program)
    (tmp_path / "containerd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert await installed_version() == version
