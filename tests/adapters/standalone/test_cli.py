"""The command line: exit codes, output, and one line for each mistake. Few tests need a process of its own for that."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from peili.adapters.standalone import load, serve, settings
from peili.adapters.standalone.cli import main
from peili.adapters.standalone.parsing import parse_config
from peili.mirror import Plugins, Router
from peili.mirror.tls.key_file import create_key_file


def peili(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process. A process of its own would take most of a second of CPU time to start."""
    out, err = io.StringIO(), io.StringIO()
    command = [*map(str, arguments)]
    with pytest.MonkeyPatch.context() as environment, redirect_stdout(out), redirect_stderr(err):
        for name, value in environ.items():
            environment.setenv(name, value)
        code = main(command)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def process(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "peili.adapters.standalone", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
        check=False,
    )


@pytest.mark.parametrize(
    "arguments", [("plugins", "--json"), ("serve", "--check", "--set=store.kind=tape"), ("keys", "new", os.devnull)]
)
def test_a_process_prints_the_same_and_ends_with_the_same_code(arguments: tuple[str, ...]) -> None:
    """Most tests here need no process of their own for what they test."""
    alone, here = process(*arguments), peili(*arguments)
    assert (alone.returncode, alone.stdout, alone.stderr) == (here.returncode, here.stdout, here.stderr)
    assert here.returncode == {"plugins": 0, "serve": 2, "keys": 1}[arguments[0]]


def test_plugins_lists_the_names_in_each_group_and_their_classes() -> None:
    done = peili("plugins", "--json")
    groups = json.loads(done.stdout)
    assert list(groups) == ["stores", "routers", "resolvers"]
    assert groups["stores"]["oci-layout"] == "peili.stores.oci_layout:OciLayoutStore"
    assert "static" in groups["routers"]
    assert "defer" in groups["resolvers"]
    text = peili("plugins").stdout
    assert "\n  oci-layout  peili.stores.oci_layout:OciLayoutStore\n" in text
    assert text.startswith("stores\n")


def test_a_closed_pipe_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "peili.adapters.standalone", "plugins"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        assert command.stderr.read() == b""
        assert command.wait(60) == 141


def test_version_prints_the_versions_of_python_and_the_libraries() -> None:
    versions = json.loads(peili("version", "--json").stdout)
    assert versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert versions["peili"][0].isdigit()
    assert {"grpcio", "uvicorn"} <= set(versions)
    assert f"peili {versions['peili']}\npython {versions['python']}\n" in peili("version").stdout


def test_the_option_version_prints_only_the_version_of_peili() -> None:
    done = peili("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert [done.stdout.rstrip("\n")] == peili("version").stdout.splitlines()[:1]


def test_the_installed_script_is_the_same_command() -> None:
    script = Path(sys.executable).parent / "peili"
    done = subprocess.run([script, "version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == peili("version").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing command."),
        (("sreve",), "No such command 'sreve'."),
        (("serve", "--nothing"), "No such option"),
        (("serve", "--config"), "Option '--config' requires an argument."),
        (("hosts", "show", "--format", "k4s"), "'k4s' is not one of 'containerd', 'k3s', 'talos'."),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(arguments: tuple[str, ...], message: str) -> None:
    done = peili(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--check", "--config", ""),
        ("doctor", "--containerd-config", ""),
        ("keys", "new", ""),
        ("ping", ""),
        ("hosts", "show", "--mirror", ""),
        ("hosts", "show", "--containerd-version", ""),
        ("hosts", "show", "--format", "k3s", "--file", ""),
        ("hosts", "show", "--config-path", ""),
        ("hosts", "show", "--registry", ""),
    ],
)
def test_an_empty_value_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    """A shell passes it for a variable that is not set. It must not mean the default, or the current directory."""
    done = peili(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "empty" in done.stderr or "--config-path: " in done.stderr or "--registry: " in done.stderr


def test_help_ends_with_0_and_lists_the_commands() -> None:
    done = peili("--help")
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in ("serve", "hosts", "plugins", "version", "demo"))
    assert "PEILI_ROUTER__KIND=static" in peili("serve", "--help").stdout


def test_check_reads_the_whole_configuration_and_starts_no_server(tmp_path: Path) -> None:
    file = tmp_path / "peili.toml"
    file.write_text("[store]\nkind = 'memory'\n[router]\nkind = 'static'\npeers = ['http://10.0.0.3:5051']\n")
    done = peili("serve", "--config", file, "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the configuration is valid\n", "")
    assert peili("serve", "--check", "--set=store.kind=memory").stdout == "the configuration is valid\n"


def test_each_command_reads_the_default_file_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "default.toml"
    socket = tmp_path / "containerd.sock"
    file.write_text(f"[local]\nlisten = '127.0.0.1:1234'\n[store]\naddress = '{socket}'\n")
    named = f"peili: the configuration is {file}\n"
    done = peili("hosts", "show", "--config-path", tmp_path, PEILI_CONFIG=str(file))
    assert (done.returncode, done.stderr) == (0, named)
    done = peili("hosts", "apply", "--dry-run", "--config-path", tmp_path, PEILI_CONFIG=str(file))
    assert done.stderr.startswith(named)
    assert "http://127.0.0.1:1234" in done.stdout
    done = peili("doctor", "--json", PEILI_CONFIG=str(file))
    assert done.stderr == named
    assert str(socket) in str(json.loads(done.stdout)["findings"][0])
    done = peili("serve", "--check", PEILI_CONFIG=str(file))
    assert (done.stdout, done.stderr) == (f"the configuration is valid: {file}\n", "")
    done = peili("serve", "--check", "--config", "/dev/null", PEILI_CONFIG=str(file))
    assert done.stdout == "the configuration is valid\n"


def test_the_default_file_is_read_only_if_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "peili.toml"
    monkeypatch.delenv("PEILI_CONFIG")
    monkeypatch.setattr(load, "DEFAULT_FILE", file)
    assert main(["serve", "--check"]) == 0
    file.write_text("[store]\nkind = 'memory'\n")
    assert main(["serve", "--check"]) == 0
    assert capsys.readouterr().out == f"the configuration is valid\nthe configuration is valid: {file}\n"
    file.write_text("nonsense")
    assert main(["serve", "--check"]) == 2
    assert capsys.readouterr().err.startswith(f"peili: {file}: not TOML")


ALL_WRONG = """
identity = "a"
[loacl]
listen = "127.0.0.1:1"
[peer]
listen = "nowhere"
insecure = "yes"
advertise = "10.0.0.2"
[store]
kind = "oci-layout"
path = 7
[router]
kind = "static"
peers = 3
[resolver]
kind = "upstrem"
[limits]
uploads = "many"
downloads = 1
[log]
verify = false
level = "loud"
[watchdog]
timeout = -1
"""


def test_one_run_names_all_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "peili.toml"
    file.write_text(ALL_WRONG)
    done = peili("serve", "--check", "--config", file)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line.removeprefix(f"peili: {file}: ") for line in done.stderr.splitlines()]
    own = ["identity", "loacl", "peer.listen", "peer.insecure", "peer.advertise", "limits.downloads", "limits.uploads"]
    own += ["log.verify", "log.level", "watchdog.timeout"]
    assert [line.partition(": ")[0] for line in lines] == [*own, "store.path", "router.peers", "resolver.kind"]
    assert lines[own.index("log.verify")] == "log.verify: belongs in [mirror]"
    done = peili("hosts", "show", "--config", file)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == len(own), "plug-ins are not needed here"


EMBEDDING = "{} is only for embedding; use static, file, dns, mdns, kubernetes or talos"
LEVELS = "debug, info, warning, error"
PEERS = "[router]\nkind = 'static'\npeers = 3"


@pytest.mark.parametrize(
    ("content", "flags", "environ", "line"),
    [
        (None, [], {}, "{file}: can't be read: No such file or directory"),
        ("[store]\nkind = memory", [], {}, "{file}: not TOML: Invalid value (at line 2, column 8)"),
        ("[log]\nformat = 'xml'", [], {}, "{file}: log.format: one of text, json, not 'xml'"),
        ("", ["--log-level", "loud"], {}, f"--log-level: log.level: one of {LEVELS}, not 'loud'"),
        ("", ["--set", "mirror.verify=no"], {}, "--set: mirror.verify: true or false, not 'no'"),
        ("", [], {"PEILI_PEER__INSECURE": "yes"}, "PEILI_PEER__INSECURE: peer.insecure: true or false, not 'yes'"),
        (PEERS, [], {}, '{file}: router.peers: a list of URLs, as in ["http://10.0.0.3:5051"], not 3'),
        ("[router]\nkind = 'push'", [], {}, f"{{file}}: router.kind: {EMBEDDING.format('push')}"),
        ("", ["--set", "router.kind=memory"], {}, f"--set: router.kind: {EMBEDDING.format('memory')}"),
        (
            "[peer]\nshared_key_file = '/k'",
            [],
            {},
            "{file}: peer.shared_key_file: /k can't be read: no such file or directory",
        ),
        (
            "[peer]\ntls = { ca = '/ca', cert = '/c', key = '/k' }",
            [],
            {},
            "{file}: peer.tls.ca: /ca has no usable certificate: no such file or directory",
        ),
    ],
)
def test_a_wrong_configuration_ends_with_2_and_one_line(
    content: str | None, flags: list[str], environ: dict[str, str], line: str, tmp_path: Path
) -> None:
    file = tmp_path / "peili.toml"
    if content is not None:
        file.write_text(content)
    done = peili("serve", "--config", file, "--check", *flags, PEILI_STORE__KIND="memory", **environ)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"peili: {line.format(file=file)}\n")


def test_a_key_is_written_to_a_new_file_or_to_stdout(tmp_path: Path) -> None:
    file = tmp_path / "key"
    done = peili("keys", "new", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"created {file}\n", "")
    text = file.read_text()
    assert text.startswith("peili-key-v1:")
    done = peili("keys", "new", file)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"peili: {file} exists, and is not changed\n")
    assert file.read_text() == text
    assert len(peili("keys", "new").stdout) == len(text)


@pytest.mark.parametrize(
    ("flags", "key", "expected", "end"),
    [
        (
            ["--set=router.kind=static", "--set=router.peers=['https://10.0.0.2:5051', 'http://10.0.0.3:5051']"],
            "--set: router.peers[1]",
            "an https URL",
            ", not http://10.0.0.3:5051",
        ),
        (
            ["--set=router.kind=talos", "--set=router.file=/members", "--set=router.scheme=http"],
            "--set: router.scheme",
            "https",
            "",
        ),
        (
            ["--set=router.kind=dns", "--set=router.srv=_peili._tcp.test", "--set=router.scheme=http"],
            "--set: router.scheme",
            "https",
            "",
        ),
    ],
    ids=["static", "talos", "dns"],
)
def test_with_a_key_the_urls_of_peers_must_be_https(
    flags: list[str], key: str, expected: str, end: str, tmp_path: Path
) -> None:
    peili("keys", "new", tmp_path / "key")
    access = f"--set=peer.shared_key_file={tmp_path}/key"
    done = peili("serve", "--check", "--set=store.kind=memory", access, *flags)
    reason = "because [peer] has a key or certificates, and hosts connect to peers with TLS"
    assert (done.returncode, done.stderr) == (2, f"peili: {key}: {expected}, {reason}{end}\n")


def test_check_reads_the_certificate_of_the_local_door(tmp_path: Path) -> None:
    files = [f"--set=local.cert={tmp_path}/cert.pem", f"--set=local.key={tmp_path}/key.pem"]
    done = peili("serve", "--check", "--set=store.kind=memory", *files)
    problem = f"peili: --set: local.cert: {tmp_path}/cert.pem can't be read: no such file or directory\n"
    assert (done.returncode, done.stderr) == (2, problem)


@pytest.mark.parametrize("text", ["http://10.0.0.3:5051\n", '["https://10.0.0.4:5051", ["http://10.0.0.3:5051"]]'])
def test_with_a_key_a_file_of_peers_must_have_https_urls(text: str, tmp_path: Path) -> None:
    peili("keys", "new", tmp_path / "key")
    members = tmp_path / "members"
    flags = ["serve", "--check", "--set=store.kind=memory", "--set=router.kind=file", f"--set=router.path={members}"]
    members.write_text(text)
    assert peili(*flags).returncode == 0
    done = peili(*flags, f"--set=peer.shared_key_file={tmp_path}/key")
    reason = "because [peer] has a key or certificates, and hosts connect to peers with TLS"
    line = f"peili: --set: router.path: a file with https URLs, {reason}, not http://10.0.0.3:5051\n"
    assert (done.returncode, done.stderr) == (2, line)
    for other in ("https://10.0.0.3:5051\n", "not a URL"):  # the router itself reports a mistake
        members.write_text(other)
        assert peili(*flags, f"--set=peer.shared_key_file={tmp_path}/key").returncode == 0
    members.unlink()
    assert peili(*flags, f"--set=peer.shared_key_file={tmp_path}/key").returncode == 0


@pytest.mark.parametrize("flags", [["kind=talos", "file=/members"], ["kind=dns", "name=peers.example", "port=5051"]])
def test_with_a_key_routers_make_https_urls(flags: list[str], tmp_path: Path) -> None:
    create_key_file(tmp_path / "key")
    found = [each for flag in flags for each in settings.from_flags([f"router.{flag}"])]
    found += settings.from_flags([f"peer.shared_key_file={tmp_path}/key", "store.kind=memory"])
    made: list[Mapping[str, Any]] = []

    class NotingPlugins(Plugins):
        @override
        def router(self, kind: str, options: Mapping[str, Any]) -> Router:
            made.append(options)
            return super().router(kind, options)

    serve.build(parse_config(settings.merge(found)), NotingPlugins())
    assert [each["scheme"] for each in made] == ["https"]


FROZEN = """
import sys
from peili.adapters.standalone import cli
from peili.mirror import ROUTERS, STORES, Plugins, PushRouter
from peili.stores.memory import MemoryStore

class OwnStore(MemoryStore):
    pass

class OwnRouter(PushRouter):
    pass

plugins = Plugins()
plugins.register(STORES, "own", OwnStore)
plugins.register(ROUTERS, "own", OwnRouter)
sys.exit(cli.main(plugins=plugins))
"""


def test_a_frozen_app_registers_its_own_plug_ins() -> None:
    def frozen(*arguments: str) -> str:
        command = [sys.executable, "-c", FROZEN, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    assert json.loads(frozen("plugins", "--json"))["stores"]["own"] == "__main__:OwnStore"
    assert frozen("serve", "--check", "--set=store.kind=own", "--set=router.kind=own") == "the configuration is valid\n"


COMMANDS = (
    "serve",
    "status",
    "doctor",
    "hosts",
    "plugins",
    "version",
    "demo",
    "hosts apply",
    "hosts show",
    "hosts remove",
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_describes_itself(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), flag]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: peili {command} [OPTIONS]")
    assert err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_wrong_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--frobnicate"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "No such option" in err
    assert "--frobnicate" in err


def test_a_misspelt_option_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--confg", "x"]) == 2
    assert "--config" in capsys.readouterr().err


COMPLETIONS = {
    "hosts ap": ["apply"],
    "serve --log-level ": ["debug", "info", "warning", "error"],
    "serve --log-format j": ["json"],
    "hosts show --format k": ["k3s"],
    "hosts apply --dry": ["--dry-run"],
}
SEPARATOR = "--- the next line"


def word_number(line: str) -> int:
    """Return the number of the last word of a line that begins with `peili`."""
    return line.count(" ") + 1


def complete(shell: str, first: str, each: str, lines: Iterable[str] = COMPLETIONS) -> Mapping[str, list[str]]:
    """Complete each line in a shell that finds the installed script `peili`.

    Args:
        shell: The program.
        first: Its commands that load the completion.
        each: Its commands for a line, with `{line}` and `{number}`, that of the last word.
        lines: The lines.

    Returns:
        What the shell prints for each line.
    """
    commands = [each.format(line=line, number=word_number(line)) for line in lines]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [shell, "-c", "\n".join([first, f"\necho '{SEPARATOR}'\n".join(commands)])]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=True, env={**os.environ, "PATH": path}
    )
    assert done.stderr == ""
    return {line: text.strip().splitlines() for line, text in zip(lines, done.stdout.split(SEPARATOR), strict=True)}


@pytest.fixture(scope="module")
def completed_by_bash() -> Mapping[str, list[str]]:
    return complete(
        "bash",
        'eval "$(_PEILI_COMPLETE=bash_source peili)"',
        "COMP_WORDS=(peili {line}); COMP_CWORD={number}\n"
        '_peili_completion peili\nprintf "%s\\n" "${{COMPREPLY[@]}}"; COMPREPLY=()',
    )


@pytest.mark.parametrize("line", COMPLETIONS)
def test_bash_completes_commands_options_and_values(completed_by_bash: Mapping[str, list[str]], line: str) -> None:
    assert completed_by_bash[line] == COMPLETIONS[line]


def test_zsh_loads_the_completion_and_gets_an_answer() -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    line = next(iter(COMPLETIONS))
    answers = complete(
        "zsh",
        'autoload -U compinit; compinit -D; eval "$(_PEILI_COMPLETE=zsh_source peili)"\n'
        "[[ ${_comps[peili]} == _peili_completion ]] || exit 1",
        'env COMP_WORDS="peili {line}" COMP_CWORD={number} _PEILI_COMPLETE=zsh_complete peili',
        [line],
    )
    assert answers == {line: zsh_answer(line).strip().splitlines()}


def zsh_answer(line: str) -> str:
    """Return what the script for zsh gets, from this process."""
    data = io.BytesIO()
    asked = {"COMP_WORDS": f"peili {line}", "COMP_CWORD": str(word_number(line)), "_PEILI_COMPLETE": "zsh_complete"}
    with pytest.MonkeyPatch.context() as environment, redirect_stdout(io.TextIOWrapper(data)) as out:
        for name, value in asked.items():
            environment.setenv(name, value)
        assert main([]) == 0
        out.flush()
        return data.getvalue().decode()


@pytest.mark.parametrize("line", COMPLETIONS)
def test_zsh_completes_commands_options_and_values(line: str) -> None:
    """The script defines its functions. What they request is the second field of each group of three lines."""
    assert zsh_answer(line).strip().splitlines()[1::3] == COMPLETIONS[line]
