"""The command in odd surroundings: streams that can't be written to, a directory that is gone, signals at the start."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from peili.adapters.standalone.cli import main
from peili.adapters.standalone.streams import exit_code

COMMAND = (sys.executable, "-m", "peili.adapters.standalone")


def shell(
    script: str, *arguments: str | bytes, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script in which ``"$@"`` is the command with `arguments`."""
    return subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, *arguments],
        capture_output=True,
        timeout=120,
        env={**os.environ, **(environ or {})},
        check=False,
    )


@pytest.mark.parametrize("arguments", [("version",), ("keys", "new"), ("--help",), ("hosts", "show")])
def test_a_full_disk_is_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    more = ("--config-path", str(tmp_path), "--containerd-version=2.1.0") if arguments[0] == "hosts" else ()
    done = shell('"$@" >/dev/full', *arguments, *more)
    assert (done.returncode, done.stderr) == (1, b"peili: the output can't be written: no space left on device\n")


def test_closed_streams_are_no_error(tmp_path: Path) -> None:
    """Without stdout, the key file would get its number, and what is printed would be in it."""
    done = shell('"$@" <&- >&- 2>&-', "keys", "new", str(tmp_path / "key"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert len((tmp_path / "key").read_text().splitlines()) == 1
    assert shell('"$@" 2>&-', "serve", "--check", "--config", str(tmp_path / "nothing")).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict"])
def test_what_the_output_can_not_encode_is_escaped(encoding: str, tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path) + b"/n\xc3\xb6\xff"
    arguments = ("hosts", "show", "--containerd-version=2.1.0", "--config-path", directory)
    done = shell('"$@"', *arguments, environ={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\udcff" in done.stdout


def test_a_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    script = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && " + '"$@"'
    done = shell(script, "hosts", "show", "--config-path=relative", "--containerd-version=2.1.0")
    line = b"peili: the current directory does not exist any more; change to another one\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_other_errors_of_the_system_are_not_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(OSError(errno.EMFILE, "too many open files")) == 1
    line = "peili: too few files may be open; raise the limit (ulimit -n, or LimitNOFILE= of the service)\n"
    assert capsys.readouterr().err == line
    for error in (OSError(errno.EPERM, "no"), OSError(errno.ENOSPC, "full", "/some/file"), OSError("odd")):
        with pytest.raises(OSError, match=str(error.args[-1])):
            exit_code(error)


def test_an_error_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--check", "--config", "a\nb\x1b[2J"]) == 2
    assert capsys.readouterr().err == "peili: a\\nb\\x1b[2J: can't be read: No such file or directory\n"


def test_an_interrupt_while_the_command_is_loaded_prints_nothing(tmp_path: Path) -> None:
    """Python would print a traceback of the import."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise ImportError")
    done = subprocess.run(
        ["env", "--default-signal=INT", *COMMAND, "version"],  # a shell's background job ignores it
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


RELOADED_EARLY = """
import os, signal, sys
from peili.adapters.standalone import cli
from peili.mirror import STORES, ConfigError, Plugins
from peili.stores.memory import MemoryStore

class EarlyStore(MemoryStore):
    @classmethod
    def from_config(cls, config):
        os.kill(os.getpid(), signal.SIGHUP)
        raise ConfigError("kind", "reached")

plugins = Plugins()
plugins.register(STORES, "early", EarlyStore)
sys.exit(cli.main(["serve", "--set=store.kind=early"], plugins=plugins))
"""


def test_a_reload_before_the_start_ends_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", RELOADED_EARLY], capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (2, b"peili: --set: store.kind: reached\n")


def test_the_doctor_quotes_what_could_control_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.toml"
    config.write_text('version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/a\\u001b[2J\\n"\n')
    main(
        [
            "doctor",
            "--containerd-config",
            str(config),
            f"--set=store.address={tmp_path}/none",
            "--set=local.listen=127.0.0.1:1",
        ]
    )
    shown = capsys.readouterr().out
    assert "fail  config_path: the directory /a\\x1b[2J\\n does not exist\n" in shown
    assert "\x1b" not in shown
