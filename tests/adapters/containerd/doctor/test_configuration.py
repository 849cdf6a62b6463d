"""peili reads containerd's configuration like each release of containerd itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lab.processes import ENVIRONMENT, CommandFailed, Process, run, wait_for
from tests.lab.releases import RELEASE_NAMES, each_release, release
from tests.support.directories import short_directory

from peili.adapters.containerd.doctor.configuration import CRI_2, IMAGES_3, InvalidConfiguration, read_configuration
from peili.adapters.containerd.doctor.registry_settings import RegistrySettings, registry_settings
from peili.adapters.containerd.version import ContainerdVersion

V16, V20, V21, V22, V24 = (
    ContainerdVersion(1, 6),
    ContainerdVersion(2, 0),
    ContainerdVersion(2, 1),
    ContainerdVersion(2, 2),
    ContainerdVersion(2, 4),
)
CRI = 'plugins."io.containerd.grpc.v1.cri"'
IMAGES = 'plugins."io.containerd.cri.v1.images"'


def write(directory: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory / next(iter(files))


def settings_in_force(file: Path, version: ContainerdVersion) -> RegistrySettings:
    return registry_settings(read_configuration(file, version), version)


needs_containerd = pytest.mark.skipif(
    shutil.which("containerd", path=ENVIRONMENT["PATH"]) is None, reason="not installed: containerd"
)

PLAIN = f'version = 2\n[{CRI}.registry]\nconfig_path = "/a:/b"\n[{CRI}.containerd]\ndiscard_unpacked_layers = true\n'
CASES: dict[str, dict[str, str]] = {
    "plain": {"c.toml": PLAIN},
    "no settings": {"c.toml": "version = 2\n"},
    "version 1": {"c.toml": '[plugins.cri.registry]\nconfig_path = "/a"\n'},
    "an import adds a plug-in": {
        "c.toml": 'imports = ["cri.toml"]\nversion = 2\n',
        "cri.toml": PLAIN,
    },
    "an import replaces the plug-in's whole table": {
        "c.toml": f'imports = ["more.toml"]\n{PLAIN}',
        "more.toml": f"version = 2\n[{CRI}]\nmax_concurrent_downloads = 7\n",
    },
    "imports by a pattern, later ones win": {
        "c.toml": 'imports = ["DIR/d/*.toml"]\nversion = 2\n',
        "d/1.toml": f'version = 2\n[{CRI}.registry]\nconfig_path = "/one"\n',
        "d/2.toml": f'version = 2\n[{CRI}.registry]\nconfig_path = "/two"\n',
    },
    "an import that imports": {
        "c.toml": 'imports = ["d/a.toml"]\nversion = 2\n',
        "d/a.toml": 'imports = ["b.toml", "../c.toml"]\nversion = 2\n',
        "d/b.toml": PLAIN,
    },
    "a relative pattern": {
        "c.toml": 'imports = ["d/*.toml"]\nversion = 2\n',
        "d/a.toml": PLAIN,
    },
    "mirrors in the old form": {
        "c.toml": f'version = 2\n[{CRI}.registry.mirrors."a.b"]\nendpoint = ["http://c"]\n',
    },
    "a version that is too new, between others": {
        "c.toml": 'imports = ["none.toml"]\nversion = 4\n',
        "none.toml": 'imports = ["2.toml"]\n',
        "2.toml": "version = 2\n",
    },
    "a plug-in switched off by its name of version 1": {"c.toml": 'version = 2\ndisabled_plugins = ["cri"]\n'},
    "a byte-order mark": {"c.toml": f"\ufeff{PLAIN}"},
    "a byte-order mark in an import": {"c.toml": 'imports = ["cri.toml"]\nversion = 2\n', "cri.toml": f"\ufeff{PLAIN}"},
    "the version as a string": {"c.toml": 'version = "2"\n'},
    "a version of more than 64 bits": {"c.toml": f"version = {10**22}\n"},
    "imports that are no list": {"c.toml": 'version = 2\nimports = "cri.toml"\n', "cri.toml": PLAIN},
    "imports with a number": {"c.toml": "version = 2\nimports = [3]\n"},
    "disabled_plugins that are no list": {"c.toml": 'version = 2\ndisabled_plugins = "cri"\n'},
    "plugins that are no table": {"c.toml": "version = 2\nplugins = 3\n"},
    "a plug-in that is no table": {"c.toml": "plugins.cri = 3\n"},
    "a proxy that is no table": {"c.toml": "version = 2\nproxy_plugins.stargz = 3\n"},
    "config_path as a list": {"c.toml": f'version = 2\n[{CRI}.registry]\nconfig_path = ["/a"]\n'},
    "config_path as a list, in an import": {
        "c.toml": 'imports = ["cri.toml"]\nversion = 2\n',
        "cri.toml": f'version = 2\n[{CRI}.registry]\nconfig_path = ["/a"]\n',
    },
    "config_path as a list, for 2.x": {"c.toml": f'version = 3\n[{IMAGES}.registry]\nconfig_path = ["/a"]\n'},
    "registry that is no table": {"c.toml": f"version = 2\n[{CRI}]\nregistry = 3\n"},
    "discard_unpacked_layers as a string": {
        "c.toml": f'version = 2\n[{CRI}.containerd]\ndiscard_unpacked_layers = "true"\n'
    },
    "settings for 2.x are ignored": {
        "c.toml": f'version = 2\n[{IMAGES}.registry]\nconfig_path = "/a"\n',
    },
}


@dataclass(frozen=True)
class InForce:
    """The settings in force, according to peili or to containerd."""

    config_path: str
    discard: bool
    mirrors: bool
    local: bool


@pytest.mark.parametrize("name", each_release(*RELEASE_NAMES))
@pytest.mark.parametrize("files", CASES.values(), ids=CASES.keys())
def test_peili_and_containerd_agree(files: dict[str, str], name: str, tmp_path: Path) -> None:
    file = write(tmp_path, {each: text.replace("DIR", str(tmp_path)) for each, text in files.items()})
    assert by_peili(file, name) == by_containerd(file, name)


@cache
def version_of(name: str) -> ContainerdVersion:
    """Return the version of the release `name`."""
    return ContainerdVersion.parse(run([release(name).program("containerd"), "--version"]).decode().split()[2])


def by_peili(file: Path, name: str) -> InForce | None:
    """Return the settings that peili reads; None if containerd would not start with the file."""
    version = version_of(name)
    try:
        ours = settings_in_force(file, version)
    except InvalidConfiguration:
        return None
    # Since 2.3, containerd sets the default when it starts, but not for a dump.
    path = "" if (version.major, version.minor) >= (2, 3) and ours.is_default else ours.config_path
    local = version.major >= 2 and (version.minor == 0 or not ours.uses_transfer_service)
    return InForce(path, ours.discards_layers, ours.has_mirrors, local)


def by_containerd(file: Path, name: str) -> InForce | None:
    """Return the settings that ``containerd config dump`` prints; None if it refuses the file."""
    command = [release(name).program("containerd"), "--config", str(file), "config", "dump"]
    try:
        plugins = tomllib.loads(run(command).decode())["plugins"]
    except CommandFailed:
        return None
    if version_of(name).major < 2:
        cri = plugins[CRI_2]
        registry, discard = cri["registry"], cri["containerd"]["discard_unpacked_layers"]
        return InForce(registry["config_path"], discard, bool(registry["mirrors"]), local=False)
    images = plugins[IMAGES_3]
    local = (
        images["use_local_image_pull"]
        or images["discard_unpacked_layers"]
        or images["max_concurrent_downloads"] != 3
        or bool(images["registry"].get("mirrors"))
    )
    registry, discard = images["registry"], images["discard_unpacked_layers"]
    return InForce(registry["config_path"], discard, bool(registry.get("mirrors")), local)


NAMES_OF_CRI = ("cri", CRI_2, IMAGES_3)


@st.composite
def files_of_any_version(draw: st.DrawFn) -> str:
    """Draw a file of some version with some of the CRI plug-in's tables under one of its names."""
    version = draw(st.sampled_from([0, 1, 2, 2, 2, 3, 3, 4]))
    plugin = draw(st.sampled_from(NAMES_OF_CRI))
    header, below = f'plugins."{plugin}"', "" if plugin == IMAGES_3 else ".containerd"
    tables: dict[str, list[str]] = {}
    if (downloads := draw(st.none() | st.integers(1, 9))) is not None:
        tables.setdefault("", []).append(f"max_concurrent_downloads = {downloads}")
    if (path := draw(st.none() | st.sampled_from(["", "/a", "/a:/b", "/etc/containerd/certs.d"]))) is not None:
        tables.setdefault(".registry", []).append(f'config_path = "{path}"')
    if (discard := draw(st.none() | st.booleans())) is not None:
        tables.setdefault(below, []).append(f"discard_unpacked_layers = {json.dumps(discard)}")
    if plugin != IMAGES_3 and draw(st.booleans()):
        tables[".containerd.runtimes.runc"] = ['runtime_type = "io.containerd.runc.v2"']
    texts = ["\n".join([f"[{header}{path}]", *lines]) for path, lines in tables.items()]
    return "\n".join([f"version = {version}" if version else "", *texts])


@pytest.mark.parametrize("name", each_release(*RELEASE_NAMES))
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(files_of_any_version(), min_size=1, max_size=3))
def test_peili_and_containerd_agree_on_any_chain_of_files(
    name: str, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("chain")
    names = [f"{number}.toml" for number in range(len(texts))]
    for number, text in enumerate(texts):
        imports = f"imports = {json.dumps(names[number + 1 : number + 2])}\n"
        (directory / names[number]).write_text(f"{imports}{text}\n")
    file = directory / names[0]
    assert by_peili(file, name) == by_containerd(file, name)


@needs_containerd
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("version = 2\n[plugins", "is not TOML: "),
        ('imports = ["gone.toml"]\nversion = 2\n', "gone.toml cannot be read: no such file or directory"),
        ('imports = ["DIR"]\nversion = 2\n', "cannot be read: is a directory"),
    ],
)
def test_an_invalid_file_is_an_error_as_it_is_for_containerd(text: str, reason: str, tmp_path: Path) -> None:
    file = write(tmp_path, {"c.toml": text.replace("DIR", str(tmp_path))})
    with pytest.raises(InvalidConfiguration) as error:
        read_configuration(file, V16)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(CommandFailed):
        run(["containerd", "--config", str(file), "config", "dump"])


def test_imported_tables_replace_those_of_1_x_and_are_merged_in_2_x(tmp_path: Path) -> None:
    file = write(tmp_path, CASES["an import replaces the plug-in's whole table"])
    assert read_configuration(file, V16).replaced == ((CRI_2, file, tmp_path / "more.toml"),)
    assert settings_in_force(file, V16).directories == ()
    assert read_configuration(file, V20).replaced == ()
    assert settings_in_force(file, V20).directories == ("/a", "/b")


def test_a_relative_pattern_is_relative_to_the_working_directory_in_1_x_and_to_the_file_in_2_x(tmp_path: Path) -> None:
    file = write(tmp_path, CASES["a relative pattern"])
    assert read_configuration(file, V16).unmatched_imports == ("d/*.toml",)
    assert read_configuration(file, V16, tmp_path).files == (file, tmp_path / "d/a.toml")
    assert read_configuration(file, V20).files == (file, tmp_path / "d/a.toml")


def test_a_relative_config_path_is_relative_to_the_working_directory(tmp_path: Path) -> None:
    file = write(tmp_path, {"c.toml": f'version = 2\n[{CRI}.registry]\nconfig_path = "d:/b"\n'})
    for version in (V16, V20):
        settings = registry_settings(read_configuration(file, version, tmp_path), version)
        assert (settings.directories, settings.config_path) == ((str(tmp_path / "d"), "/b"), "d:/b")


def test_a_wrong_value_is_named_with_what_it_must_be(tmp_path: Path) -> None:
    file = write(tmp_path, CASES["config_path as a list, in an import"])
    with pytest.raises(InvalidConfiguration) as error:
        read_configuration(file, V20)
    reason = "registry.config_path, which must be a string: the CRI plug-in does not load with it"
    assert str(error.value) == f"{tmp_path}/cri.toml has a wrong {reason}"


def settings_2(text: str, version: ContainerdVersion, tmp_path: Path) -> RegistrySettings:
    return settings_in_force(write(tmp_path, {"c.toml": text}), version)


BOTH = ("/etc/containerd/certs.d", "/etc/docker/certs.d")


@pytest.mark.parametrize(
    ("text", "version", "folders"),
    [
        ("version = 3\n", V20, ()),
        ("version = 3\n", V21, ()),
        ("version = 3\n", V22, BOTH),
        (f'version = 3\n[{IMAGES}.registry]\nconfig_path = "/a"\n', V20, ("/a",)),
        (f'version = 3\n[{IMAGES}.registry]\nconfig_path = ""\n', V22, ()),
        (f'version = 2\n[{CRI}.registry]\nconfig_path = "/a"\n', V22, ("/a",)),
        (f'version = 2\n[{CRI}.registry]\nconfig_path = ""\n', V22, BOTH),
        (f'version = 2\n[{CRI}.registry]\nconfig_path = ""\n', V21, ()),
        (f'version = 3\n[{IMAGES}.registry]\nconfig_path = ""\n', V24, BOTH),
        ("", V24, BOTH),
        (f'version = 3\n[{IMAGES}.registry.mirrors."a.b"]\nendpoint = ["http://c"]\n', V24, ()),
        (f'version = 3\n[{CRI}.registry]\nconfig_path = "/a"\n', V21, ()),
        (f'version = 3\n[{CRI}.registry]\nconfig_path = "/a"\n', V24, ("/a",)),
        ('[plugins.cri.registry]\nconfig_path = "/a"\n', V21, ()),
        ('[plugins.cri.registry]\nconfig_path = "/a"\n', V24, ("/a",)),
    ],
)
def test_config_path_in_2_x(text: str, version: ContainerdVersion, folders: tuple[str, ...], tmp_path: Path) -> None:
    assert settings_2(text, version, tmp_path).directories == folders


RUNTIMES = f'[{CRI}.containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'


@pytest.mark.parametrize(
    ("header", "more"), [(f"version = 3\n[{IMAGES}]", ""), (f"version = 2\n[{CRI}.containerd]", RUNTIMES)]
)
def test_discarded_layers_in_2_x(header: str, more: str, tmp_path: Path) -> None:
    found = settings_2(f"{header}\ndiscard_unpacked_layers = true\n{more}", V21, tmp_path)
    assert found.discards_layers
    assert not found.uses_transfer_service  # the transfer service cannot do that, so the CRI plug-in pulls
    assert found.images_header == header.splitlines()[1]


def test_2_x_ignores_discard_unpacked_layers_of_a_1_x_file_without_runtimes(tmp_path: Path) -> None:
    assert not settings_2(
        f"version = 2\n[{CRI}.containerd]\ndiscard_unpacked_layers = true\n", V21, tmp_path
    ).discards_layers


@pytest.mark.parametrize(
    ("settings", "version", "transfer"),
    [
        ("", V20, False),
        ("", V21, True),
        ("use_local_image_pull = false", V22, True),
        ("use_local_image_pull = true", V22, False),
        ("disable_snapshot_annotations = false", V21, False),
        ("image_pull_with_sync_fs = true", V21, False),
        ("max_concurrent_downloads = 2", V21, False),
        ("max_concurrent_downloads = 3", V21, True),
    ],
)
def test_which_pulls_go_through_the_transfer_service(
    settings: str, version: ContainerdVersion, transfer: bool, tmp_path: Path
) -> None:
    assert settings_2(f"version = 3\n[{IMAGES}]\n{settings}\n", version, tmp_path).uses_transfer_service is transfer


def test_the_header_under_which_a_setting_belongs(tmp_path: Path) -> None:
    assert settings_2("version = 3\n", V20, tmp_path).registry_header == f'[plugins."{IMAGES_3}".registry]'
    assert settings_2("version = 2\n", V20, tmp_path).registry_header == f'[plugins."{IMAGES_3}".registry]'
    old = f"version = 2\n[{CRI}]\nmax_concurrent_downloads = 2\n"
    assert settings_2(old, V20, tmp_path).registry_header == f'[plugins."{CRI_2}".registry]'
    assert (
        settings_2("[plugins.cri]\nstats_collect_period = 5\n", V24, tmp_path).registry_header
        == "[plugins.cri.registry]"
    )
    assert settings_2("", V20, tmp_path).registry_header == f'[plugins."{IMAGES_3}".registry]'
    assert settings_2("", V16, tmp_path).registry_header == "[plugins.cri.registry]"


@needs_containerd
@pytest.mark.skipif(os.geteuid() != 0, reason="containerd's CRI plug-in needs root")
@pytest.mark.parametrize(
    ("settings", "conflicting"),
    [
        ("", ()),
        (f'[{CRI}.registry.mirrors."a.b"]\nendpoint = ["http://c"]\n', ("mirrors",)),
        (f'[{CRI}.registry.configs."a.b".tls]\nca_file = "/ca"\n', ("configs.tls",)),
        (f'[{CRI}.registry.configs."a.b".auth]\nusername = "me"\n', ()),
    ],
)
def test_settings_that_conflict_with_config_path_keep_the_cri_plug_in_from_loading(
    settings: str, conflicting: tuple[str, ...]
) -> None:
    with short_directory() as directory:
        header = f'root = "{directory}/root"\nstate = "{directory}/state"\n[grpc]\naddress = "{directory}/c.sock"\n'
        file = write(
            directory,
            {"c.toml": f'version = 2\n{_WITHOUT_OPT}{header}[{CRI}.registry]\nconfig_path = "/a"\n{settings}'},
        )
        assert settings_in_force(file, V16).conflicting == conflicting
        containerd = Process(["containerd", "--config", str(file)], directory / "log")
        try:
            line = wait_for(lambda: _LOADED.search(containerd.output()), "the CRI plug-in has loaded, or failed to")
        finally:
            containerd.stop()
        assert line is not None
        assert line[0].startswith("failed") is bool(conflicting)


_WITHOUT_OPT = 'disabled_plugins = ["io.containerd.internal.v1.opt"]\n'  # that plug-in writes to /opt
_LOADED = re.compile("failed to load plugin io.containerd.grpc.v1.cri|Start cri plugin")
