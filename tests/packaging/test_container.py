"""The recipe of the container image, built with buildah and pip as far as possible without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.lab.processes import ENVIRONMENT, run
from tests.support.directories import short_directory

from peili.adapters.standalone.cli import main
from peili.mirror.tls.key_file import create_key_file

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "packaging/container/Containerfile"


class Buildah:
    """buildah with its own storage."""

    def __init__(self, directory: Path) -> None:
        storage = ["--root", str(directory / "root"), "--runroot", str(directory / "run"), "--storage-driver", "vfs"]
        self._command = ["buildah", *storage]

    def build(self, recipe: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [*self._command, "build", "--isolation=chroot", "--pull-never", *flags, "--file", str(recipe)]
        return subprocess.run([*command, str(ROOT)], env=ENVIRONMENT, capture_output=True, text=True, check=False)

    def mounted(self, image: str) -> Path:
        container = run([*self._command, "from", "--pull-never", image]).decode().strip()
        return Path(run([*self._command, "mount", container]).decode().strip())

    def inspect(self, image: str) -> bytes:
        return run([*self._command, "inspect", "--type=image", image])

    def clean(self) -> None:
        run([*self._command, "rm", "--all"])
        run([*self._command, "rmi", "--all", "--force"])


@pytest.fixture
def directory() -> Generator[Path]:
    """A directory without a comma in its path, because a comma ends a name for buildah."""
    with short_directory() as directory:
        yield directory


@pytest.fixture
def buildah(directory: Path) -> Generator[Buildah]:
    if shutil.which("buildah", path=ENVIRONMENT["PATH"]) is None:
        pytest.skip("not installed: buildah")
    buildah = Buildah(directory / "buildah")
    yield buildah
    buildah.clean()


def without_network() -> str:
    """Return the recipe for an empty image, without the step that needs Python and a network."""
    recipe, steps = re.subn(r"^RUN .*$", "COPY README.md /opt/peili/", RECIPE.read_text(), flags=re.MULTILINE)
    assert steps == 1
    return re.sub(r"^FROM docker\.io/\S+", "FROM scratch", recipe, flags=re.MULTILINE)


def test_the_recipe_builds_without_the_step_that_needs_a_network(buildah: Buildah, directory: Path) -> None:
    recipe = directory / "Containerfile"
    recipe.write_text(without_network())
    done = buildah.build(recipe, "--tag=image")
    assert done.returncode == 0, done.stderr
    config = json.loads(buildah.inspect("image"))["OCIv1"]["config"]
    assert (config["Entrypoint"], config["Cmd"]) == (["peili"], ["serve"])
    assert "PATH=/opt/peili/bin:" in "".join(config["Env"])
    assert (buildah.mounted("image") / "opt/peili/README.md").is_file()
    recipe.write_text(without_network().replace("STOPSIGNAL", "STOPSIGN"))
    assert buildah.build(recipe).returncode != 0


def test_the_copied_files_are_enough_for_an_installation(buildah: Buildah, tmp_path: Path) -> None:
    done = buildah.build(RECIPE, "--target=source", "--tag=source")
    assert done.returncode == 0, done.stderr
    source = tmp_path / "source"
    shutil.copytree(buildah.mounted("source"), source)
    assert not [each for each in source.rglob("*") if each.name in {"__pycache__", ".git", ".venv"}]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    target = tmp_path / "installed"
    alone = ("--no-deps", "--no-build-isolation")  # hatchling is here, and nothing is fetched
    subprocess.run([*pip, "install", "--quiet", *alone, f"--target={target}", source], check=True)
    shipped = {each.relative_to(ROOT / root) for root in ("mirror", "adapters") for each in (ROOT / root).rglob("*.py")}
    assert shipped <= {each.relative_to(target) for each in target.rglob("*.py")}
    entry = json.loads(instruction("ENTRYPOINT"))
    assert (target / "bin" / entry[0]).is_file()


def copied() -> set[str]:
    """Return the names that the recipe copies from the checkout."""
    steps = re.findall(r"^COPY (?!--)(.*) \S+$", RECIPE.read_text(), re.MULTILINE)
    return {name for step in steps for name in step.split()}


def test_the_build_context_holds_only_what_the_recipe_copies(buildah: Buildah, directory: Path) -> None:
    """The history and the environments of the checkout do not belong in it."""
    recipe = directory / "Containerfile"
    recipe.write_text("FROM scratch\nCOPY . /\n")
    done = buildah.build(recipe, "--tag=context")
    assert done.returncode == 0, done.stderr
    context = buildah.mounted("context")
    assert {each.name for each in context.iterdir()} == copied()
    assert not list(context.rglob("__pycache__"))


def test_docker_ignores_the_same_files() -> None:
    assert (ROOT / ".dockerignore").read_text() == (ROOT / ".containerignore").read_text()


def instruction(name: str) -> str:
    found = re.findall(rf"^{name} (.*)$", RECIPE.read_text(), re.MULTILINE)
    assert len(found) == 1
    return str(found[0])


def test_the_extra_that_it_installs_exists() -> None:
    extras = re.findall(r"/src\[(\w+)\]", instruction("RUN"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras
    assert set(extras) <= set(project["optional-dependencies"])


def test_the_configuration_for_a_host_has_a_key(tmp_path: Path) -> None:
    file = ROOT / "packaging/peili.toml"
    peer = tomllib.loads(file.read_text())["peer"]
    assert peer["shared_key_file"] == "/etc/peili/key"
    create_key_file(tmp_path / "key")
    flags = ["--check", f"--config={file}", f"--set=peer.shared_key_file={tmp_path}/key"]
    command = [str(Path(sys.executable).with_name("peili")), "serve", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "the configuration is valid\n"), done.stderr


def alternatives() -> list[list[str]]:
    """Return what is commented out in the configuration for a host, block by block, as options for the command."""
    found: list[list[str]] = []
    section, is_in_block = "", False
    for line in (ROOT / "packaging/peili.toml").read_text().splitlines():
        section = line.strip("[]") if line.startswith("[") else section
        key = re.match(r"# (\w+ = .+)$", line)
        if key is not None:
            found += [] if is_in_block else [[]]
            found[-1].append(f"--set={section}.{key[1].replace(' = ', '=', 1)}")
        is_in_block = key is not None
    return found


def test_what_is_commented_out_in_the_configuration_for_a_host_is_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_key_file(tmp_path / "key")
    file = tmp_path / "peili.toml"
    file.write_text((ROOT / "packaging/peili.toml").read_text().replace("/etc/peili/key", f"{tmp_path}/key"))
    blocks = alternatives()
    assert len(blocks) == 12
    for flags in blocks:
        assert main(["serve", "--check", f"--config={file}", *flags]) == 0, (flags, capsys.readouterr().err)


def test_the_entry_point_and_the_stop_signal_are_known_to_peili() -> None:
    program, subcommand = json.loads(instruction("ENTRYPOINT"))[0], json.loads(instruction("CMD"))
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *subcommand, "--check", "--set=store.kind=memory"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "the configuration is valid\n")
    assert instruction("STOPSIGNAL") == "SIGTERM"  # as tests/adapters/standalone/test_serve.py has it
