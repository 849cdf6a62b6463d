"""Plug-ins by name."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from peili.mirror import RESOLVERS, ROUTERS, STORES, ConfigError, PluginNotFound, Plugins
from peili.mirror.plugins.loading import BUILT_IN
from peili.stores.memory import MemoryStore


@pytest.mark.parametrize("group", [STORES, ROUTERS, RESOLVERS])
def test_the_built_in_table_equals_the_registered_entry_points(group: str) -> None:
    registered = {
        each.name: each.value for each in entry_points(group=group) if each.dist and each.dist.name == "peili"
    }
    assert registered == BUILT_IN[group]
    assert Plugins().names(group).items() >= registered.items()


def test_each_built_in_plug_in_can_be_loaded() -> None:
    for group, names in BUILT_IN.items():
        for name, target in names.items():
            assert isinstance(EntryPoint(name, target, group).load(), type)


def test_an_unknown_name_is_answered_with_the_names_that_exist() -> None:
    plugins = Plugins()
    for get, kind, names in (
        (plugins.store, "store", "containerd, memory, oci-layout"),
        (plugins.router, "router", "dns, file, kubernetes, mdns, memory, push, static, talos"),
        (plugins.resolver, "resolver", "chain, defer, local, peers, upstream"),
    ):
        with pytest.raises(PluginNotFound) as refused:
            get("nonesuch", {})
        assert str(refused.value) == f"no {kind} is called 'nonesuch'; there are: {names}"


def test_an_agent_can_register_its_own_plug_ins_for_itself_alone() -> None:
    class Mine(MemoryStore):
        pass

    plugins = Plugins()
    plugins.register(STORES, "mine", Mine)
    plugins.register(STORES, "theirs", "peili.stores.memory:MemoryStore")
    assert isinstance(plugins.store("mine", {}), Mine)
    assert isinstance(plugins.store("theirs", {}), MemoryStore)
    assert plugins.names(STORES)["mine"].endswith("Mine")
    assert "mine" not in Plugins().names(STORES)
    with pytest.raises(ValueError, match=r"^no group 'peili\.things'; there are: peili\.stores, "):
        plugins.register("peili.things", "mine", Mine)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nonesuch.module:Thing", "which can't be loaded: ModuleNotFoundError: No module named 'nonesuch'"),
        ("peili.stores.memory:Nonesuch", "which can't be loaded: "),
        ("peili.mirror:serve", "which is not a class"),
        ("peili.routers.memory:MemoryRouter", "which is not a Store"),
        ("fractions:Fraction", "which is not a Store"),
        ("not a target", "which can't be loaded: "),
    ],
)
def test_a_name_that_leads_to_the_wrong_class_is_reported_in_one_line(target: str, message: str) -> None:
    plugins = Plugins()
    plugins.register(STORES, "wrong", target)
    with pytest.raises(ConfigError) as refused:
        plugins.store("wrong", {})
    assert str(refused.value).startswith(f"kind: 'wrong' leads to {target}, {message}")
    assert "\n" not in str(refused.value)


STRANGERS = """
from peili.mirror import Router
from peili.stores.memory import MemoryStore

class Abstract(Router):
    pass

class NoWord(MemoryStore):
    @classmethod
    def from_config(cls, config):
        raise KeyError("size")
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a third-party distribution in which everything is wrong."""
    (tmp_path / "harbour_broken.py").write_text("raise RuntimeError('no licence:\\nbuy one')\n")
    (tmp_path / "harbour_wrong.py").write_text(STRANGERS)
    (tmp_path / "harbour_typo.py").write_text("def :\n")
    information = tmp_path / "harbour-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: Harbour\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[peili.stores]\nbroken = harbour_broken:Store\ntypo = harbour_typo:Store\nnoword = harbour_wrong:NoWord\n"
        "[peili.routers]\nabstract = harbour_wrong:Abstract\nstore = harbour_wrong:NoWord\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


@pytest.mark.usefixtures("distribution")
@pytest.mark.parametrize(
    ("group", "kind", "message"),
    [
        (STORES, "broken", "harbour_broken:Store, which can't be loaded: RuntimeError: no licence: buy one"),
        (STORES, "typo", "harbour_typo:Store, which can't be loaded: SyntaxError: invalid syntax"),
        (STORES, "noword", "harbour_wrong:NoWord, which can't be constructed: KeyError: 'size'"),
        (
            ROUTERS,
            "abstract",
            "harbour_wrong:Abstract, which can't be constructed: TypeError: Can't instantiate abstract",
        ),
        (ROUTERS, "store", "harbour_wrong:NoWord, which is not a Router"),
    ],
)
def test_a_wrong_third_party_plug_in_is_reported_in_one_line_with_its_distribution(
    group: str, kind: str, message: str
) -> None:
    plugins = Plugins()
    with pytest.raises(ConfigError) as refused:
        (plugins.store if group == STORES else plugins.router)(kind, {})
    assert str(refused.value).startswith(f"kind: {kind!r} of the distribution Harbour leads to {message}")
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("distribution")
def test_a_broken_third_party_plug_in_affects_no_other() -> None:
    assert isinstance(Plugins().store("memory", {}), MemoryStore)
    assert Plugins().names(STORES)["broken"] == "harbour_broken:Store"


POISONED = """
import importlib.metadata

def poisoned(**_):
    raise AssertionError("entry points were scanned")

importlib.metadata.entry_points = poisoned
from peili.mirror import Plugins
plugins = Plugins()
plugins.store("memory", {})
plugins.router("static", {"peers": []})
plugins.resolver("chain", {"rules": [{"use": ["local", "peers"]}]})

from peili.adapters.standalone import cli
assert cli.main(["serve", "--check", "--set=router.kind=static", "--set=router.peers=[]"]) == 0
try:
    plugins.store("other", {})
except AssertionError:
    print("scanned for a stranger's only")
"""


def test_built_in_plug_ins_are_loaded_without_a_scan_of_entry_points() -> None:
    done = subprocess.run([sys.executable, "-c", POISONED], capture_output=True, text=True, check=False)
    assert done.stdout == "the configuration is valid\nscanned for a stranger's only\n", done.stderr
